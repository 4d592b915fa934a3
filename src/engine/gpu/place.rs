//! A device that was opened, and weights on their way to it.

use super::fault;
use crate::engine::LoadError;
use crate::engine::device::{self, OpenError, Precision};
use candle_core::{DType, Device, Tensor};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Rows, depth and width of the product by which a device shows that it computes.
const PROOF: (usize, usize, usize) = (13, 40, 48);

/// A device and the numbers that are computed with on it. Clones are the same device.
#[derive(Debug, Clone)]
pub struct Place {
    device: Device,
    dtype: DType,
    /// One batch at a time: the threads of a device share its stream and the state of its libraries.
    turn: Arc<Mutex<()>>,
}

impl Place {
    /// Opens a device.
    ///
    /// # Errors
    /// A library of the device's is missing, or what its driver says.
    pub fn open(device: device::Device) -> Result<Place, OpenError> {
        // Once for the whole process: models come and go, a device's context and libraries stay.
        static OPEN: Mutex<Vec<(device::Device, Place)>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, place)) = open.iter().find(|(known, _)| *known == device) {
            return Ok(place.clone());
        }
        let place = Place::open_anew(device)?;
        open.push((device, place.clone()));
        Ok(place)
    }

    fn open_anew(device: device::Device) -> Result<Place, OpenError> {
        let device = match device {
            device::Device::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            device::Device::Cuda(number) => {
                super::cuda::load().map_err(|error| OpenError::Libraries(error.to_string()))?;
                // A stream that is the same for all threads: what one of them puts on the card others read.
                Device::new_cuda_with_stream(number).inspect(|device| {
                    // A card without pools of memory has none that could keep any.
                    let _ = super::cuda::keep(device);
                })
            }
            #[cfg(not(feature = "cuda"))]
            device::Device::Cuda(number) => Device::new_cuda(number),
            device::Device::Metal => Device::new_metal(0),
        };
        let place = Place {
            device: device.map_err(|error| OpenError::Device(fault::words(&error)))?,
            dtype: DType::F32,
            turn: Arc::default(),
        };
        match place.computes() {
            true => Ok(place),
            false => Err(OpenError::Device(
                "it does not multiply two small matrices right".into(),
            )),
        }
    }

    /// The same device for numbers of this kind.
    pub fn computing_in(&self, precision: Precision) -> Place {
        let dtype = match precision {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
            Precision::Int8 => unreachable!("refused before, by name: see Precision::choose"),
        };
        Place {
            dtype,
            ..self.clone()
        }
    }

    /// The same device for numbers of 32 bits.
    pub fn in_full(&self) -> Place {
        self.computing_in(Precision::F32)
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// In what numbers products are computed here.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether both are one device.
    pub fn is_same(&self, other: &Place) -> bool {
        Arc::ptr_eq(&self.turn, &other.turn)
    }

    /// Waits until no other thread computes on the device.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        // It guards no data that a panic could leave half done.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Multiplies two matrices of small whole numbers in 32 bits. Such products have no rounding, so this one is right to
    /// the bit or the device is not sound.
    pub fn computes(&self) -> bool {
        let (rows, depth, width) = PROOF;
        let left = |row: usize, k: usize| ((row * 7 + k * 3) % 11) as f32 - 5.0;
        let right = |k: usize, column: usize| ((k * 5 + column) % 7) as f32 - 3.0;
        let product = || {
            let _turn = self.turn();
            let a: Vec<f32> = (0..rows * depth).map(|at| left(at / depth, at % depth)).collect();
            let b: Vec<f32> = (0..depth * width)
                .map(|at| right(at / width, at % width))
                .collect();
            let a = Tensor::from_vec(a, (rows, depth), &self.device)?;
            let b = Tensor::from_vec(b, (depth, width), &self.device)?;
            a.matmul(&b)?.to_vec2::<f32>()
        };
        product().is_ok_and(|product| {
            let sum = |row, column| (0..depth).map(|k| left(row, k) * right(k, column)).sum::<f32>();
            let right = |row: usize| (0..width).all(|column| product[row][column] == sum(row, column));
            (0..rows).all(right)
        })
    }

    /// Numbers of 32 bits, put on the device as they are.
    ///
    /// # Errors
    /// The device fails or has no room.
    pub fn put(&self, numbers: &[f32], shape: &[usize]) -> Result<Tensor, LoadError> {
        Tensor::from_slice(numbers, shape, &self.device).map_err(fault::at_load)
    }

    /// The same in the numbers of this place.
    ///
    /// # Errors
    /// The device fails or has no room.
    pub fn put_narrow(&self, numbers: Vec<f32>, shape: &[usize]) -> Result<Tensor, LoadError> {
        // Rounded here, so that the device holds no copy in 32 bits beside it.
        let put = || {
            Tensor::from_vec(numbers, shape, &Device::Cpu)?
                .to_dtype(self.dtype)?
                .to_device(&self.device)
        };
        put().map_err(fault::at_load)
    }

    /// A matrix to be filled output by output.
    pub fn rows(&self, depth: usize, width: usize, bias: bool) -> Rows<'_> {
        Rows {
            place: self,
            depth,
            rows: vec![0.0; depth * width],
            bias: bias.then(|| vec![0.0; width]),
        }
    }
}

/// A matrix that is being read.
pub struct Rows<'a> {
    place: &'a Place,
    depth: usize,
    rows: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Rows<'_> {
    /// Sets what leads to output `row`.
    pub fn set(&mut self, row: usize, values: &[f32], scale: f32) {
        let row = &mut self.rows[row * self.depth..][..self.depth];
        row.iter_mut()
            .zip(values)
            .for_each(|(out, value)| *out = value * scale);
    }

    /// Sets what is added to output `row`.
    pub fn set_bias(&mut self, row: usize, value: f32) {
        if let Some(bias) = &mut self.bias {
            bias[row] = value;
        }
    }

    /// Puts the matrix on its device.
    ///
    /// # Errors
    /// The device fails or has no room.
    pub fn place(self) -> Result<Placed, LoadError> {
        let width = self.rows.len() / self.depth;
        let weight = self.place.put_narrow(self.rows, &[width, self.depth])?;
        let bias = self.bias.map(|bias| self.place.put_narrow(bias, &[width]));
        Ok(Placed {
            // A view: the libraries that multiply take a matrix either way round.
            weight: weight.t().map_err(fault::at_load)?,
            bias: bias.transpose()?,
        })
    }
}

/// A linear layer on a device. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Numbers of an input by numbers of an output.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Placed {
    /// Numbers of an output.
    pub fn width(&self) -> usize {
        self.weight.dims()[1]
    }

    /// `rows × weights + bias`; the rows are in the numbers of the place.
    pub fn product(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        let product = rows.matmul(&self.weight)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_device_computes() {
        assert!(Place::open(device::Device::Cpu).unwrap().computes());
    }
}
