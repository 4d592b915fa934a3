//! The Dense modules behind the pooling.

use super::matrix::{Matrix, Part};
use crate::engine::LoadError;
use crate::engine::folder::{Activation, DenseSpec};
use crate::engine::gpu::{Place, Placed};
use crate::engine::kernel::After;
use crate::engine::kernel::Arch;
use crate::engine::weights::{Tensors, Weights};

/// One Dense module: a linear layer and what is done to its output.
#[derive(Debug)]
pub struct Dense {
    linear: Matrix,
    activation: Activation,
}

impl Dense {
    /// Reads `linear.weight` and `linear.bias` of the module's folder, for the CPU or a `place` on a device.
    ///
    /// # Errors
    /// A file or a tensor is missing, misshapen or damaged.
    pub fn load(spec: &DenseSpec, place: Option<&Place>) -> Result<Dense, LoadError> {
        let mut weights = Weights::open(&spec.dir)?;
        // A few rows for a text: what 32 bits cost here is not worth a rounding.
        weights.place = place.map(Place::in_full);
        let tensors = Tensors::new(&weights, "");
        let linear = Matrix::load(
            &tensors,
            spec.input,
            &[Part::plain("linear", spec.output, spec.bias)],
        )?;
        Ok(Dense {
            linear,
            activation: spec.activation,
        })
    }

    /// Applies the module to one vector.
    pub fn apply(&self, arch: Arch, vector: &[f32]) -> Vec<f32> {
        let mut output = vec![0.0; self.linear.width()];
        self.linear
            .product(arch, vector, vector.len(), &mut output, After::Nothing);
        let activation: fn(f32) -> f32 = match self.activation {
            Activation::Identity => |v| v,
            Activation::Tanh => f32::tanh,
            Activation::Relu => |v| v.max(0.0),
            Activation::Sigmoid => |v| 1.0 / (1.0 + (-v).exp()),
        };
        output.iter_mut().for_each(|v| *v = activation(*v));
        output
    }

    /// The module on its device.
    pub fn placed(&self) -> (Placed, Activation) {
        (self.linear.placed(), self.activation)
    }

    /// Components of the vector behind the module.
    pub fn width(&self) -> usize {
        self.linear.width()
    }
}
