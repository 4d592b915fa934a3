//! The launch of the kernels in `attention.cu`.

use crate::engine::gpu::attention::{Batch, Mixed};
use crate::engine::layers::attention::Reach;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

/// The kernels, compiled by `build.rs`.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));
/// Queries of a block: `BLOCK_QUERIES` of the source.
pub const BLOCK_QUERIES: usize = 16;
/// Keys that a block looks at together: `KEYS` of the source.
const KEYS: usize = 32;
/// Threads of a block: 32 times `WARPS` of the source.
const THREADS: u32 = 128;
/// Bytes of scratch that a block has without asking: 48 KiB on every card.
const SCRATCH_USUAL: usize = 48 << 10;
/// Numbers of the widest head.
pub const WIDTH_MAX: usize = 256;

/// `Arguments` of the source.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    width: u32,
    shared: u32,
    query_stride: u32,
    key_stride: u32,
    value_stride: u32,
    causal: u32,
    window: u32,
    places: u32,
}

// SAFETY: eight numbers of 32 bits in the order of C, as the kernel's parameter is.
unsafe impl DeviceRepr for Arguments {}

/// For each block the sequence and the place of its first query.
pub fn tiles(starts: &[u32]) -> Vec<u32> {
    let mut tiles = Vec::new();
    for (sequence, pair) in starts.windows(2).enumerate() {
        for first in (0..pair[1] - pair[0]).step_by(BLOCK_QUERIES) {
            tiles.extend([sequence as u32, first]);
        }
    }
    tiles
}

/// A row of all heads for each token. `distances` is the table of [`Distances`](crate::engine::layers::bias::Distances) on
/// the device, and its places.
pub fn attend(
    mixed: &Mixed,
    reach: Reach,
    distances: Option<&(Tensor, usize)>,
    batch: &Batch<'_>,
) -> Result<Tensor> {
    let (tokens, heads, width) = mixed.queries.dims3()?;
    let seen = mixed.queries.apply_op3_no_bwd(
        &mixed.keys,
        &mixed.values,
        &Attend {
            reach,
            distances: distances.cloned(),
            starts: batch.starts.clone(),
            tiles: batch.tiles.clone(),
        },
    )?;
    seen.reshape((tokens, heads * width))
}

struct Attend {
    reach: Reach,
    distances: Option<(Tensor, usize)>,
    starts: Tensor,
    tiles: Tensor,
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("the kernel is CUDA's; elsewhere attention is made of Candle's products")
    }

    fn cuda_fwd(
        &self,
        queries: &CudaStorage,
        query: &Layout,
        keys: &CudaStorage,
        key: &Layout,
        values: &CudaStorage,
        value: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use candle_core::cuda_backend::CudaStorageSlice as Slice;
        let layouts = [query, key, value];
        Ok(match (&queries.slice, &keys.slice, &values.slice) {
            (Slice::F32(q), Slice::F32(k), Slice::F32(v)) => {
                self.launch("attend_f32", &queries.device, (q, k, v), layouts)?
            }
            (Slice::F16(q), Slice::F16(k), Slice::F16(v)) => {
                self.launch("attend_f16", &queries.device, (q, k, v), layouts)?
            }
            (Slice::BF16(q), Slice::BF16(k), Slice::BF16(v)) => {
                self.launch("attend_bf16", &queries.device, (q, k, v), layouts)?
            }
            _ => bail!("attention of other numbers than f32, f16 and bf16"),
        })
    }
}

impl Attend {
    fn launch<T: CudaDType + DeviceRepr>(
        &self,
        name: &str,
        device: &CudaDevice,
        (queries, keys, values): (&CudaSlice<T>, &CudaSlice<T>, &CudaSlice<T>),
        [query, key, value]: [&Layout; 3],
    ) -> Result<(CudaStorage, Shape)> {
        let (tokens, heads, width) = query.shape().dims3()?;
        let key_heads = key.dims()[1];
        // What the kernel relies on when it forms addresses.
        for layout in [query, key, value] {
            let stride = layout.stride();
            assert!(
                stride[2] == 1 && stride[1] == width,
                "heads of a row lie side by side"
            );
            assert!(
                layout.dims()[0] == tokens && layout.dims()[2] == width,
                "a row for each token"
            );
        }
        assert!(width <= WIDTH_MAX && heads % key_heads == 0 && value.dims()[1] == key_heads);
        let places = self.distances.as_ref().map_or(0, |(_, places)| *places);
        let with = Arguments {
            width: width as u32,
            shared: (heads / key_heads) as u32,
            query_stride: query.stride()[0] as u32,
            key_stride: key.stride()[0] as u32,
            value_stride: value.stride()[0] as u32,
            causal: self.reach.causal.into(),
            window: self
                .reach
                .window
                .map_or(u32::MAX / 2, |window| window.min(1 << 30) as u32),
            places: places as u32,
        };
        let parts = width.div_ceil(32).next_power_of_two();
        let function = device.get_or_load_custom_func(&format!("{name}_{parts}"), "attention", PTX)?;
        let scratch = (KEYS + BLOCK_QUERIES) * (width + 1) * size_of::<f32>();
        if scratch > SCRATCH_USUAL {
            let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, scratch as i32).w()?;
        }
        let (starts, _) = self.starts.storage_and_layout();
        let (tiles, _) = self.tiles.storage_and_layout();
        let table = self
            .distances
            .as_ref()
            .map(|(table, _)| table.storage_and_layout().0);
        let (starts, tiles) = (numbers::<u32>(&starts)?, numbers::<u32>(&tiles)?);
        // Without distances nothing is read there; any address will do.
        let none = device.alloc_zeros::<f32>(1)?;
        let table = match &table {
            Some(table) => numbers::<f32>(table)?,
            None => &none,
        };
        // SAFETY: the kernel writes every number of it: a row of all heads for each token of each sequence.
        let output = unsafe { device.alloc::<T>(tokens * heads * width)? };
        let (queries, keys, values) = (
            queries.slice(query.start_offset()..),
            keys.slice(key.start_offset()..),
            values.slice(value.start_offset()..),
        );
        let mut call = function.builder();
        call.arg(&queries);
        call.arg(&keys);
        call.arg(&values);
        call.arg(&output);
        call.arg(starts);
        call.arg(tiles);
        call.arg(table);
        call.arg(&with);
        let config = LaunchConfig {
            grid_dim: ((tiles.len() / 2) as u32, heads as u32, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: scratch as u32,
        };
        // SAFETY: the arguments are those of the kernel's declaration; it reads rows below `tokens`, which `starts` ends
        // with, by the strides that were checked above, and writes as many to `output`.
        unsafe { call.launch(config).w()? };
        drop(call);
        let shape = Shape::from((tokens, heads, width));
        Ok((CudaStorage::wrap_cuda_slice(output, device.clone()), shape))
    }
}

/// The rows of each sequence, each times its weight, added up; `rows` and `weights` have 32 bits.
pub fn pool(rows: &Tensor, weights: &Tensor, batch: &Batch<'_>) -> Result<Tensor> {
    let starts = batch.starts.clone();
    rows.apply_op2_no_bwd(weights, &Pool { starts })
}

struct Pool {
    starts: Tensor,
}

impl CustomOp2 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("the kernel is CUDA's; elsewhere pooling is made of Candle's products")
    }

    fn cuda_fwd(
        &self,
        rows: &CudaStorage,
        row: &Layout,
        weights: &CudaStorage,
        weight: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (tokens, width) = row.shape().dims2()?;
        assert!(row.is_contiguous() && weight.is_contiguous() && weight.dims()[0] == tokens);
        let device = &rows.device;
        let (rows, weights) = (rows.as_cuda_slice::<f32>()?, weights.as_cuda_slice::<f32>()?);
        let (rows, weights) = (
            rows.slice(row.start_offset()..),
            weights.slice(weight.start_offset()..),
        );
        let function = device.get_or_load_custom_func("pool_f32", "attention", PTX)?;
        let (starts, _) = self.starts.storage_and_layout();
        let starts = numbers::<u32>(&starts)?;
        let count = starts.len() - 1;
        // SAFETY: the kernel writes every number of it: a row for each sequence.
        let output = unsafe { device.alloc::<f32>(count * width)? };
        let width_bare = width as u32;
        let mut call = function.builder();
        call.arg(&rows);
        call.arg(&weights);
        call.arg(&output);
        call.arg(starts);
        call.arg(&width_bare);
        let config = LaunchConfig {
            grid_dim: (count as u32, width_bare.div_ceil(THREADS), 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those of the kernel's declaration; rows below `starts`' last number are read, of which
        // there are `tokens`, and one is written for each sequence.
        unsafe { call.launch(config).w()? };
        drop(call);
        let shape = Shape::from((count, width));
        Ok((CudaStorage::wrap_cuda_slice(output, device.clone()), shape))
    }
}

/// What a whole tensor holds on its card.
fn numbers<T: CudaDType>(storage: &Storage) -> Result<&CudaSlice<T>> {
    match storage {
        Storage::Cuda(storage) => storage.as_cuda_slice::<T>(),
        _ => bail!("a tensor of the batch is not on the card"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_query_is_in_one_block() {
        assert_eq!(tiles(&[0, 1, 18, 34]), [0, 0, 1, 0, 1, 16, 2, 0]);
    }
}
