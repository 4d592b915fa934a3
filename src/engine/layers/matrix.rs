//! Weights of a linear layer. The one type that products with weights go through, so that their precision and
//! layout are decided in one place.

use super::norm::Norm;
use crate::engine::LoadError;
use crate::engine::gpu::{Placed, Rows};
use crate::engine::kernel::Arch;
use crate::engine::kernel::{self, After, Kernel, Linear, Next, Panels};
use crate::engine::weights::Tensors;

/// A stored layer, or one of several that are laid side by side.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The tensor's name without `.weight`.
    pub name: &'a str,
    /// Outputs of the layer: rows of the stored tensor.
    pub width: usize,
    /// Whether there is a `.bias`.
    pub bias: bool,
    /// The first `scaled` outputs are multiplied by `scale`.
    pub scaled: usize,
    /// See `scaled`.
    pub scale: f32,
    /// Stored output `i` becomes output `(i + turned) % width`.
    pub turned: usize,
}

impl<'a> Part<'a> {
    /// A layer as it is stored.
    pub fn plain(name: &'a str, width: usize, bias: bool) -> Part<'a> {
        Part {
            name,
            width,
            bias,
            scaled: 0,
            scale: 1.0,
            turned: 0,
        }
    }

    /// The same layer with its first `scaled` outputs multiplied by `scale`.
    pub fn times(self, scaled: usize, scale: f32) -> Part<'a> {
        Part {
            scaled,
            scale,
            ..self
        }
    }

    /// The same layer with its outputs turned by so many places.
    pub fn turned(self, turned: usize) -> Part<'a> {
        Part { turned, ..self }
    }
}

/// One linear layer, `input × weights + bias`.
#[derive(Debug)]
pub struct Matrix(Form);

/// All matrices of a model have the same form: it was loaded for one device.
#[derive(Debug)]
enum Form {
    Packed(Panels),
    Placed(Placed),
}

/// A matrix that is being read, output by output.
enum Building<'a> {
    Packed(Panels),
    Placed(Rows<'a>),
}

impl Building<'_> {
    fn set_column(&mut self, column: usize, values: &[f32], scale: f32) {
        match self {
            Building::Packed(panels) => panels.set_stored(column, values, scale),
            Building::Placed(rows) => rows.set(column, values, scale),
        }
    }

    fn set_bias(&mut self, column: usize, value: f32) {
        match self {
            Building::Packed(panels) => panels.set_bias(column, value),
            Building::Placed(rows) => rows.set_bias(column, value),
        }
    }
}

impl Matrix {
    /// Reads layers that take the same `depth` inputs and lays them side by side.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or damaged.
    pub fn load(tensors: &Tensors<'_>, depth: usize, parts: &[Part<'_>]) -> Result<Matrix, LoadError> {
        Matrix::load_behind(None, tensors, depth, parts)
    }

    /// As [`Matrix::load`], for layers whose input comes from a norm, which tells how it spreads.
    ///
    /// # Errors
    /// A tensor is missing, misshapen or damaged.
    pub fn load_behind(
        norm: Option<&Norm>,
        tensors: &Tensors<'_>,
        depth: usize,
        parts: &[Part<'_>],
    ) -> Result<Matrix, LoadError> {
        for part in parts {
            tensors.expect(&format!("{}.weight", part.name), &[part.width, depth])?;
        }
        let width = parts.iter().map(|part| part.width).sum();
        let mut building = match tensors.place() {
            Some(place) => {
                let bias = parts.iter().any(|part| part.bias);
                Building::Placed(place.rows(depth, width, bias))
            }
            None => {
                let mut panels = Panels::packed(tensors.kernel(), depth, width);
                if let Some(norm) = norm {
                    panels.even_out(&norm.spread());
                }
                Building::Packed(panels)
            }
        };
        let mut first = 0;
        for part in parts {
            let scale = |row: usize| if row < part.scaled { part.scale } else { 1.0 };
            let column = |row: usize| first + (row + part.turned) % part.width;
            let name = format!("{}.weight", part.name);
            tensors.rows(&name, &[part.width, depth], &mut |row, values| {
                building.set_column(column(row), values, scale(row));
            })?;
            if part.bias {
                let bias = tensors.vector(&format!("{}.bias", part.name), part.width)?;
                for (row, value) in bias.iter().enumerate() {
                    building.set_bias(column(row), value * scale(row));
                }
            }
            first += part.width;
        }
        Ok(Matrix(match building {
            Building::Packed(panels) => Form::Packed(panels),
            Building::Placed(rows) => Form::Placed(rows.place()?),
        }))
    }

    fn panels(&self) -> &Panels {
        match &self.0 {
            Form::Packed(panels) => panels,
            Form::Placed(_) => unreachable!("the CPU's engine is made of a model that was packed for it"),
        }
    }

    /// The matrix on its device.
    pub fn placed(&self) -> Placed {
        match &self.0 {
            Form::Placed(placed) => placed.clone(),
            Form::Packed(_) => unreachable!("a device's engine is made of a model that was placed on it"),
        }
    }

    /// Numbers in a row of the product.
    pub fn width(&self) -> usize {
        match &self.0 {
            Form::Packed(panels) => panels.width(),
            Form::Placed(placed) => placed.width(),
        }
    }

    /// Numbers of a row of the input that take part.
    pub fn depth(&self) -> usize {
        self.panels().depth()
    }

    /// What products with it are computed by.
    pub fn kernel(&self) -> Kernel {
        self.panels().kernel()
    }

    /// `output = after(input × weights + bias)`, row by row. Rows of the input begin every `input_stride`
    /// numbers; those of the output lie side by side.
    pub fn product(&self, arch: Arch, input: &[f32], input_stride: usize, output: &mut [f32], after: After) {
        self.linear(input, input_stride, output, after).run(arch);
    }

    /// As [`Matrix::product`], only the columns of the panels that `next` hands out.
    pub fn product_panels(
        &self,
        arch: Arch,
        input: &[f32],
        input_stride: usize,
        output: &mut [f32],
        after: After,
        next: Next<'_>,
    ) {
        self.linear(input, input_stride, output, after)
            .run_panels(arch, next);
    }

    fn linear<'a>(
        &'a self,
        input: &'a [f32],
        input_stride: usize,
        output: &'a mut [f32],
        after: After,
    ) -> Linear<'a> {
        Linear {
            input,
            input_stride,
            rows: output.len() / self.width(),
            weights: self.panels(),
            output,
            output_stride: self.width(),
            after,
        }
    }

    /// `output = down × gelu(self × input)`, on rows that lie side by side; `wide` has room for what lies
    /// between the products.
    pub fn product_pair(
        &self,
        arch: Arch,
        input: &[f32],
        wide: &mut [f32],
        down: &Matrix,
        output: &mut [f32],
    ) {
        kernel::feed_forward(arch, input, self.panels(), wide, down.panels(), output);
    }
}
