//! Normalisation of rows: LayerNorm, with or without a shift, and RMSNorm.

use crate::engine::LoadError;
use crate::engine::kernel::{Arch, mul_add};
use crate::engine::math::LayerNorm;
use crate::engine::weights::Tensors;
use pulp::{Simd, WithSimd};

/// A norm and its weights.
#[derive(Debug)]
pub struct Norm {
    weight: Vec<f32>,
    /// The shift of a LayerNorm, zeros where it has none; absent in an RMSNorm.
    bias: Option<Vec<f32>>,
    epsilon: f32,
}

impl Norm {
    /// A LayerNorm of `width` numbers. Without `bias` it does not shift.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or damaged.
    pub fn layer(
        tensors: &Tensors<'_>,
        name: &str,
        width: usize,
        bias: bool,
        epsilon: f32,
    ) -> Result<Norm, LoadError> {
        // The first checkpoints of BERT say gamma and beta.
        let old = !tensors.has(&format!("{name}.weight")) && tensors.has(&format!("{name}.gamma"));
        let (scale, shift) = if old {
            ("gamma", "beta")
        } else {
            ("weight", "bias")
        };
        let weight = tensors.vector(&format!("{name}.{scale}"), width)?;
        let bias = if bias {
            tensors.vector(&format!("{name}.{shift}"), width)?
        } else {
            vec![0.0; width]
        };
        Ok(Norm {
            weight,
            bias: Some(bias),
            epsilon,
        })
    }

    /// How far the numbers of a row may be expected to spread at each place: three times the deviation that the
    /// norm gives them, around its shift.
    pub fn spread(&self) -> Vec<f32> {
        let shift = self.bias.iter().flatten().copied().chain(std::iter::repeat(0.0));
        self.weight
            .iter()
            .zip(shift)
            .map(|(weight, shift)| 3.0 * weight.abs() + shift.abs())
            .collect()
    }

    /// An RMSNorm of `width` numbers, whose stored weights are counted from `origin`: Gemma's from 1.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or damaged.
    pub fn rms(
        tensors: &Tensors<'_>,
        name: &str,
        width: usize,
        origin: f32,
        epsilon: f32,
    ) -> Result<Norm, LoadError> {
        let mut weight = tensors.vector(&format!("{name}.weight"), width)?;
        weight.iter_mut().for_each(|value| *value += origin);
        Ok(Norm {
            weight,
            bias: None,
            epsilon,
        })
    }

    /// The same norm with its output multiplied by `scale`.
    pub fn times(mut self, scale: f32) -> Norm {
        let all = self.weight.iter_mut().chain(self.bias.iter_mut().flatten());
        all.for_each(|value| *value *= scale);
        self
    }

    /// The scale, the shift, which only a LayerNorm has, and what is added to the variance.
    pub fn parts(&self) -> (&[f32], Option<&[f32]>, f32) {
        (&self.weight, self.bias.as_deref(), self.epsilon)
    }

    /// `rows = norm(rows + added)`, in place.
    pub fn run(&self, arch: Arch, rows: &mut [f32], added: Option<&[f32]>) {
        match &self.bias {
            Some(bias) => LayerNorm {
                rows,
                added,
                weight: &self.weight,
                bias,
                epsilon: self.epsilon,
            }
            .run(arch),
            None => {
                if let Some(added) = added {
                    rows.iter_mut()
                        .zip(added)
                        .for_each(|(value, more)| *value += more);
                }
                let weight = &self.weight;
                arch.dispatch(Rms {
                    rows,
                    weight,
                    epsilon: self.epsilon,
                });
            }
        }
    }

    /// `output = norm(input)`, both without gaps.
    pub fn copy(&self, arch: Arch, input: &[f32], output: &mut [f32]) {
        output.copy_from_slice(input);
        self.run(arch, output, None);
    }
}

/// `rows = rows / root(mean(rows²) + ε) · weight`, row by row, in place.
struct Rms<'a> {
    rows: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl WithSimd for Rms<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        let (weight, weight_tail) = S::as_simd_f32s(self.weight);
        for row in self.rows.chunks_exact_mut(width) {
            let (head, tail) = S::as_mut_simd_f32s(row);
            let mut squares = simd.splat_f32s(0.0);
            for v in head.iter() {
                squares = mul_add(simd, *v, *v, squares);
            }
            let rest: f32 = tail.iter().map(|v| v * v).sum();
            let mean = (simd.reduce_sum_f32s(squares) + rest) / width as f32;
            let scale = 1.0 / (mean + self.epsilon).sqrt();
            let factor = simd.splat_f32s(scale);
            for (v, w) in head.iter_mut().zip(weight) {
                *v = simd.mul_f32s(simd.mul_f32s(*v, factor), *w);
            }
            for (v, w) in tail.iter_mut().zip(weight_tail) {
                *v = *v * scale * w;
            }
        }
    }
}
