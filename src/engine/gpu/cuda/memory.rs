//! What a card's pool of memory keeps between two batches.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{Device, Result};

/// Bytes that stay with the process when they are free. By default nothing does: at every synchronisation, and there is one for
/// each layer, all memory would go back to the driver, to be asked for again for the next. More than this, such as
/// the weights of a model that is unloaded, is given back.
const KEPT_BYTES: u64 = 1 << 30;

/// Has the card's pool keep what the next layer will want.
///
/// # Errors
/// The card has no pools.
pub fn keep(device: &Device) -> Result<()> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let mut bytes = KEPT_BYTES;
    // SAFETY: the device is that of a live context, its pool lives as long, and this attribute is a number of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device()).w()?;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast()).w()
    }
}
