//! Weights in safetensors files: checked, hashed and read piece by piece, so that loading never holds more
//! than one piece beside what it builds.
//!
//! The files are read, not mapped: a file that is cut short under a mapping would end the process by a bus
//! error, and pages of the stored layout are of no use once the weights are packed.

use super::LoadError;
use super::gpu::Place;
use super::kernel::Kernel;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Numbers converted at once.
const PIECE: usize = 1 << 18;
/// The largest header that the safetensors format allows, bytes.
const HEADER_BYTES_MAX: u64 = 100_000_000;

struct Entry {
    file: usize,
    dtype: DType,
    shape: Vec<usize>,
    /// From the start of the file.
    offset: u64,
}

/// The tensors of a folder by name.
pub(super) struct Weights {
    files: Vec<(PathBuf, File)>,
    entries: BTreeMap<String, Entry>,
    /// SHA-256 over the files, in order of their names, in hexadecimal.
    pub sha256: String,
    /// Bytes of the files.
    pub bytes: u64,
    /// What the matrices of linear layers are packed for.
    pub kernel: Kernel,
    /// Where they go instead, if they are not packed.
    pub place: Option<Place>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names. `read` is told the
    /// bytes of each piece that was hashed.
    pub fn open(dir: &Path, read: &mut dyn FnMut(u64)) -> Result<Weights, LoadError> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let paths = if single.exists() {
            vec![single]
        } else if index.exists() {
            shards(dir, &index)?
        } else {
            return Err(LoadError::Missing { file: single });
        };
        let mut weights = Weights {
            files: Vec::new(),
            entries: BTreeMap::new(),
            sha256: String::new(),
            bytes: 0,
            kernel: Kernel::Floats,
            place: None,
        };
        let mut hash = Sha256::new();
        for path in paths {
            weights.add(path, &mut hash, read)?;
        }
        weights.sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(weights)
    }

    fn add(&mut self, path: PathBuf, hash: &mut Sha256, read: &mut dyn FnMut(u64)) -> Result<(), LoadError> {
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
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                // Such as position ids; nothing of ours reads them.
                _ => continue,
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
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let mut piece = vec![0; PIECE * 4];
        loop {
            let count = file.read(&mut piece).map_err(io)?;
            if count == 0 {
                break;
            }
            hash.update(&piece[..count]);
            read(count as u64);
        }
        self.bytes += bytes;
        self.files.push((path, file));
        Ok(())
    }

    /// The name under which the tensor is stored: with or without the `prefix` of the whole model.
    fn find(&self, prefix: &str, name: &str) -> Result<(String, &Entry), LoadError> {
        for full in [name.to_owned(), format!("{prefix}{name}")] {
            if let Some(entry) = self.entries.get(&full) {
                return Ok((full, entry));
            }
        }
        Err(LoadError::Tensor {
            file: self.files[0].0.clone(),
            name: name.to_owned(),
            why: "is missing".into(),
        })
    }

    /// The tensor, if it is there and has this shape.
    fn expect(&self, prefix: &str, name: &str, shape: &[usize]) -> Result<(String, &Entry), LoadError> {
        let (full, entry) = self.find(prefix, name)?;
        if entry.shape == shape {
            return Ok((full, entry));
        }
        Err(LoadError::Tensor {
            file: self.files[entry.file].0.clone(),
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
        let (path, file) = &self.files[entry.file];
        let fault = |why: String| LoadError::Tensor {
            file: path.clone(),
            name: full.clone(),
            why,
        };
        let width = shape.last().copied().unwrap_or(1).max(1);
        let count = shape.iter().product::<usize>() / width;
        let row_bytes = width * entry.dtype.size_in_bytes();
        let rows_at_once = (PIECE / width).max(1);
        let mut bytes = vec![0; rows_at_once.min(count) * row_bytes];
        let mut file = file;
        file.seek(SeekFrom::Start(entry.offset))
            .map_err(|source| LoadError::Io {
                file: path.clone(),
                source,
            })?;
        for first in (0..count).step_by(rows_at_once) {
            let rows = rows_at_once.min(count - first);
            let piece = &mut bytes[..rows * row_bytes];
            file.read_exact(piece).map_err(|source| LoadError::Io {
                file: path.clone(),
                source,
            })?;
            let numbers = Tensor::from_raw_buffer(piece, entry.dtype, &[rows * width], &Device::Cpu)
                .and_then(|tensor| tensor.to_dtype(DType::F32)?.to_vec1::<f32>())
                .map_err(|error| fault(error.to_string()))?;
            for (index, values) in numbers.chunks_exact(width).enumerate() {
                if !values.iter().all(|v| v.is_finite()) {
                    return Err(fault(format!(
                        "holds a number that is not finite in row {}",
                        first + index
                    )));
                }
                row(first + index, values);
            }
        }
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
