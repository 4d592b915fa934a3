//! Weights in safetensors files: checked and read piece by piece, so that loading never holds more than one piece
//! beside what it builds. Their checksum is taken from the same files meanwhile, by a [`Checksum`] on another thread.
//!
//! The files are read, not mapped: a file that is cut short under a mapping would end the process by a bus
//! error, and pages of the stored layout are of no use once the weights are packed.

use super::gpu::Place;
use super::kernel::Kernel;
use super::{LoadError, LoadStep};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

/// Numbers converted at once.
const PIECE: usize = 1 << 18;
/// Bytes hashed at once: few enough to lie in the second-level cache between the system's copy and the hash.
const HASHED_AT_ONCE: usize = 256 << 10;
/// The largest header that the safetensors format allows, bytes.
const HEADER_BYTES_MAX: u64 = 100_000_000;

struct Entry {
    file: usize,
    dtype: DType,
    shape: Vec<usize>,
    /// From the start of the file.
    offset: u64,
}

/// The tensors of a folder by name. Cheap to clone.
#[derive(Clone)]
pub(super) struct Weights {
    store: Arc<Store>,
    /// What the matrices of linear layers are packed for.
    pub kernel: Kernel,
    /// Where they go instead, if they are not packed.
    pub place: Option<Place>,
    /// Is told of each piece that was read.
    pub moved: Option<SyncSender<LoadStep>>,
    /// Whether what is the same in every precision is read once for all clones: at most one table.
    pub shares: bool,
}

#[derive(Default)]
struct Store {
    files: Vec<(PathBuf, File)>,
    /// Those of other modules, which are only hashed here.
    besides: Vec<(PathBuf, File)>,
    entries: BTreeMap<String, Entry>,
    /// What is stored in numbers that nothing here computes with, such as position ids.
    others: BTreeMap<String, Dtype>,
    bytes: u64,
    shared: Mutex<Option<Shared>>,
}

/// A table that was read: its tensor, what its numbers were multiplied by, and the numbers.
type Shared = (String, f32, Arc<Vec<f32>>);

/// What is hashed, on a thread of its own.
pub(super) struct Checksum {
    files: Vec<(PathBuf, File)>,
    piece: Vec<u8>,
}

impl Checksum {
    /// SHA-256 over the files, of each module in order of their names, in hexadecimal. `read` is told the bytes of each piece, and
    /// `enough` ends it early, when nobody needs it any more.
    pub fn take(self, enough: &AtomicBool, read: &mut dyn FnMut(u64)) -> Result<String, LoadError> {
        let (mut hash, mut piece) = (Sha256::new(), self.piece);
        for (path, file) in &self.files {
            let mut at = 0;
            while !enough.load(Ordering::Relaxed) {
                let count = match file.read_at(&mut piece, at) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(source) => {
                        let file = path.clone();
                        return Err(LoadError::Io { file, source });
                    }
                };
                hash.update(&piece[..count]);
                at += count as u64;
                read(count as u64);
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(dir: &Path) -> Result<Weights, LoadError> {
        Weights::open_with(dir, [])
    }

    /// The same. The weights in other folders are counted and hashed behind them, and not found by name.
    pub fn open_with<'a>(
        dir: &Path,
        besides: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Weights, LoadError> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let paths = if single.exists() {
            vec![single]
        } else if index.exists() {
            shards(dir, &index)?
        } else {
            return Err(LoadError::Missing { file: single });
        };
        let mut store = Store::default();
        for path in paths {
            store.add(path)?;
        }
        for other in besides {
            let other = Weights::open(other)?;
            store.bytes += other.bytes();
            let files = Arc::into_inner(other.store).map(|store| store.files);
            store
                .besides
                .extend(files.expect("a store that was opened here has one owner"));
        }
        Ok(Weights {
            store: Arc::new(store),
            kernel: Kernel::Floats,
            place: None,
            moved: None,
            shares: false,
        })
    }

    /// Tells that some more was done.
    pub fn step(&self) {
        if let Some(moved) = &self.moved {
            // Nobody listens any more only where the load is given up.
            let _ = moved.send(LoadStep::Packed);
        }
    }

    /// Bytes of the files.
    pub fn bytes(&self) -> u64 {
        self.store.bytes
    }

    /// The same files, to be hashed by another thread. They are opened again, so that the system reads ahead for
    /// either reader.
    pub fn checksum(&self) -> Result<Checksum, LoadError> {
        let again = |(path, file): &(PathBuf, File)| {
            let same = |other: &File| -> std::io::Result<bool> {
                let (one, other) = (file.metadata()?, other.metadata()?);
                Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
            };
            let opened = File::open(path).and_then(|other| Ok((same(&other)?, other)));
            let file = match opened {
                Ok((true, other)) => Ok(other),
                // Another file lies there by now; what counts is the one whose weights are read.
                _ => file.try_clone(),
            };
            let io = |source| LoadError::Io {
                file: path.clone(),
                source,
            };
            Ok::<_, LoadError>((path.clone(), file.map_err(io)?))
        };
        Ok(Checksum {
            files: (self.store.files.iter().chain(&self.store.besides))
                .map(again)
                .collect::<Result<_, _>>()?,
            piece: vec![0; HASHED_AT_ONCE],
        })
    }

    /// The name under which the tensor is stored: with or without the `prefix` of the whole model.
    fn find(&self, prefix: &str, name: &str) -> Result<(String, &Entry), LoadError> {
        for full in [name.to_owned(), format!("{prefix}{name}")] {
            if let Some(entry) = self.store.entries.get(&full) {
                return Ok((full, entry));
            }
        }
        let stored = |full: String| self.store.others.get(&full);
        let why = match stored(name.to_owned()).or_else(|| stored(format!("{prefix}{name}"))) {
            Some(dtype) => format!("is stored as {dtype:?}, supported: F64, F32, F16, BF16"),
            None => "is missing".to_owned(),
        };
        Err(LoadError::Tensor {
            file: self.store.files[0].0.clone(),
            name: name.to_owned(),
            why,
        })
    }

    /// The tensor, if it is there and has this shape.
    fn expect(&self, prefix: &str, name: &str, shape: &[usize]) -> Result<(String, &Entry), LoadError> {
        let (full, entry) = self.find(prefix, name)?;
        if entry.shape == shape {
            return Ok((full, entry));
        }
        Err(LoadError::Tensor {
            file: self.store.files[entry.file].0.clone(),
            name: full,
            why: format!("has shape {:?}, config.json asks for {shape:?}", entry.shape),
        })
    }

    /// Reads a tensor of exactly this shape as 32-bit numbers and hands over its rows (of the last dimension)
    /// one by one.
    fn rows(
        &self,
        prefix: &str,
        name: &str,
        shape: &[usize],
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), LoadError> {
        let (full, entry) = self.expect(prefix, name, shape)?;
        let width = shape.last().copied().unwrap_or(1).max(1);
        let count = shape.iter().product::<usize>() / width;
        let rows_at_once = (PIECE / width).max(1);
        let mut numbers = vec![0.0; rows_at_once.min(count) * width];
        for first in (0..count).step_by(rows_at_once) {
            let piece = &mut numbers[..rows_at_once.min(count - first) * width];
            self.piece(&full, entry, first * width, piece, width)?;
            for (index, values) in piece.chunks_exact(width).enumerate() {
                row(first + index, values);
            }
        }
        Ok(())
    }

    /// Reads a whole table, each number times `scale`, straight to where it stays.
    fn table(
        &self,
        prefix: &str,
        name: &str,
        shape: [usize; 2],
        scale: f32,
    ) -> Result<Arc<Vec<f32>>, LoadError> {
        let (full, entry) = self.expect(prefix, name, &shape)?;
        let mut shared = self.store.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, of, table)) = &*shared
            && (name, *of) == (&full, scale)
        {
            return Ok(table.clone());
        }
        let [count, width] = shape;
        let mut table = vec![0.0; count * width];
        let at_once = (PIECE / width.max(1)).max(1) * width.max(1);
        for (index, piece) in table.chunks_mut(at_once).enumerate() {
            self.piece(&full, entry, index * at_once, piece, width)?;
            if scale != 1.0 {
                piece.iter_mut().for_each(|value| *value *= scale);
            }
        }
        let table = Arc::new(table);
        if self.shares {
            *shared = Some((full, scale, table.clone()));
        }
        Ok(table)
    }

    /// Reads numbers of a tensor from number `first` on. Rows of `width` numbers are named where one is not finite.
    fn piece(
        &self,
        name: &str,
        entry: &Entry,
        first: usize,
        numbers: &mut [f32],
        width: usize,
    ) -> Result<(), LoadError> {
        let (path, file) = &self.store.files[entry.file];
        let fault = |why: String| LoadError::Tensor {
            file: path.clone(),
            name: name.to_owned(),
            why,
        };
        let io = |source| LoadError::Io {
            file: path.clone(),
            source,
        };
        let size = entry.dtype.size_in_bytes();
        let offset = entry.offset + (first * size) as u64;
        if entry.dtype == DType::F32 && cfg!(target_endian = "little") {
            file.read_exact_at(bytemuck::cast_slice_mut(numbers), offset)
                .map_err(io)?;
        } else {
            let mut bytes = vec![0; numbers.len() * size];
            file.read_exact_at(&mut bytes, offset).map_err(io)?;
            let converted = Tensor::from_raw_buffer(&bytes, entry.dtype, &[numbers.len()], &Device::Cpu)
                .and_then(|tensor| tensor.to_dtype(DType::F32)?.to_vec1::<f32>())
                .map_err(|error| fault(error.to_string()))?;
            numbers.copy_from_slice(&converted);
        }
        // Of all exponents the highest belongs to infinities and to what is no number.
        let exponent = |v: &f32| v.to_bits() & 0x7f80_0000;
        let highest = numbers.iter().fold(0, |most, v| exponent(v).max(most));
        if highest == 0x7f80_0000 {
            let at = numbers.iter().position(|v| !v.is_finite()).unwrap_or_default();
            let row = (first + at) / width.max(1);
            return Err(fault(format!("holds a number that is not finite in row {row}")));
        }
        self.step();
        Ok(())
    }
}

impl Store {
    fn add(&mut self, path: PathBuf) -> Result<(), LoadError> {
        let corrupt = |why: String| LoadError::Corrupt {
            file: path.clone(),
            why,
        };
        let io = |source| LoadError::Io {
            file: path.clone(),
            source,
        };
        let mut file = File::open(&path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        if bytes < 8 {
            return Err(corrupt(format!(
                "{bytes} bytes are too few for a safetensors file"
            )));
        }
        file.read_exact(&mut length).map_err(io)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX.min(bytes - 8) {
            return Err(corrupt(format!(
                "a header of {header_bytes} bytes in a file of {bytes}"
            )));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| corrupt(format!("bad header: {error}")))?;
        let data = 8 + header_bytes;
        for (name, info) in header.tensors() {
            let dtype = match info.dtype {
                Dtype::F64 => DType::F64,
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => {
                    self.others.insert(name, other);
                    continue;
                }
            };
            let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            let numbers = info
                .shape
                .iter()
                .try_fold(1usize, |product, n| product.checked_mul(*n));
            let expected = numbers
                .and_then(|n| n.checked_mul(dtype.size_in_bytes()))
                .map(|n| n as u64);
            if end < begin || end > bytes - data || expected != Some(end - begin) {
                return Err(corrupt(format!(
                    "tensor {name} of shape {:?} does not fit bytes {begin}..{end} of {}",
                    info.shape,
                    bytes - data
                )));
            }
            let entry = Entry {
                file: self.files.len(),
                dtype,
                shape: info.shape.clone(),
                offset: data + begin,
            };
            self.entries.insert(name, entry);
        }
        self.bytes += bytes;
        self.files.push((path, file));
        Ok(())
    }
}

/// The tensors of a model whose names may begin with the name of the whole model.
#[derive(Clone, Copy)]
pub(super) struct Tensors<'a> {
    weights: &'a Weights,
    prefix: &'a str,
    kernel: Kernel,
}

impl<'a> Tensors<'a> {
    /// `prefix` is what the stored names begin with where a whole model and not only its encoder was saved.
    pub fn new(weights: &'a Weights, prefix: &'a str) -> Tensors<'a> {
        Tensors {
            weights,
            prefix,
            kernel: weights.kernel,
        }
    }

    /// What the matrices of linear layers are packed for.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Where the matrices of linear layers go, if they are not packed for the CPU.
    pub fn place(&self) -> Option<&'a Place> {
        self.weights.place.as_ref()
    }

    /// The same tensors for layers that must not lose more than bf16 does.
    pub fn careful(self) -> Tensors<'a> {
        Tensors {
            kernel: self.kernel.careful(),
            ..self
        }
    }

    /// Whether the tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.weights.find(self.prefix, name).is_ok()
    }

    /// Fails unless the tensor is there and has this shape: what the file holds bounds what is asked of memory, and not
    /// what a configuration claims.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        self.weights.expect(self.prefix, name, shape).map(drop)
    }

    /// Reads a tensor of exactly this shape as 32-bit numbers and hands over its rows (of the last dimension)
    /// one by one.
    pub fn rows(
        &self,
        name: &str,
        shape: &[usize],
        row: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), LoadError> {
        self.weights.rows(self.prefix, name, shape, row)
    }

    /// Reads a tensor of `count` rows of `width` numbers, each number times `scale`.
    pub fn table(
        &self,
        name: &str,
        count: usize,
        width: usize,
        scale: f32,
    ) -> Result<Arc<Vec<f32>>, LoadError> {
        self.weights.table(self.prefix, name, [count, width], scale)
    }

    /// Reads a tensor of one dimension.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.expect(name, &[len])?;
        let mut all = Vec::with_capacity(len);
        self.rows(name, &[len], &mut |_, values| all.extend_from_slice(values))?;
        Ok(all)
    }
}

/// The files that an index names, sorted, each inside the folder.
fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, LoadError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = super::folder::read(index)?;
    let map: Index = super::folder::parse(index, &text)?;
    let mut names: Vec<String> = map.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if let Some(name) = names
        .iter()
        .find(|name| name.contains(['/', '\\']) || name.starts_with('.'))
    {
        return Err(LoadError::Value {
            file: index.to_owned(),
            key: "weight_map".into(),
            value: name.clone(),
            supported: "file names inside the folder".into(),
        });
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}
