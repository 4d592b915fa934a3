//! The Dense modules behind the pooling.

use super::LoadError;
use super::folder::{Activation, DenseSpec};
use super::kernel::{After, Linear, Panels};
use super::weights::Weights;
use pulp::Arch;

/// One Dense module: a linear layer and what is done to its output.
#[derive(Debug)]
pub(super) struct Dense {
    linear: Panels,
    activation: Activation,
}

impl Dense {
    /// Reads `linear.weight` and `linear.bias` of the module's folder.
    pub fn load(spec: &DenseSpec) -> Result<Dense, LoadError> {
        let weights = Weights::open(&spec.dir, &mut |_| ())?;
        let mut linear = Panels::zeros(spec.input, spec.output);
        weights.rows(
            "",
            "linear.weight",
            &[spec.output, spec.input],
            &mut |column, values| {
                linear.set_column(column, values.iter().copied(), 1.0);
            },
        )?;
        if spec.bias {
            let bias = weights.vector("", "linear.bias", spec.output)?;
            bias.iter()
                .enumerate()
                .for_each(|(column, value)| linear.set_bias(column, *value));
        }
        Ok(Dense {
            linear,
            activation: spec.activation,
        })
    }

    /// Applies the module to one vector.
    pub fn apply(&self, arch: Arch, vector: &[f32]) -> Vec<f32> {
        let mut output = vec![0.0; self.linear.width()];
        Linear {
            input: vector,
            input_stride: vector.len(),
            rows: 1,
            weights: &self.linear,
            output: &mut output,
            output_stride: self.linear.width(),
            after: After::Nothing,
        }
        .run(arch);
        let activation: fn(f32) -> f32 = match self.activation {
            Activation::Identity => |v| v,
            Activation::Tanh => f32::tanh,
            Activation::Relu => |v| v.max(0.0),
            Activation::Sigmoid => |v| 1.0 / (1.0 + (-v).exp()),
        };
        output.iter_mut().for_each(|v| *v = activation(*v));
        output
    }

    /// Components of the vector behind the module.
    pub fn width(&self) -> usize {
        self.linear.width()
    }
}
