//! Weights of a linear layer. The one type that products with weights go through, so that their precision and
//! layout are decided in one place.

use super::norm::Norm;
use crate::engine::LoadError;
use crate::engine::gpu::{Placed, Rows};
use crate::engine::kernel::Arch;
use crate::engine::kernel::{self, After, Kernel, Linear, Next, PANEL, Panels};
use crate::engine::weights::Tensors;
use smallvec::SmallVec;
use std::ops::Range;

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
    /// Whether it must not lose more than bf16 does. Such parts stand behind all others.
    pub careful: bool,
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
            careful: false,
        }
    }

    /// The same layer, losing no more than bf16 does whatever the others lose.
    pub fn careful(self) -> Part<'a> {
        Part {
            careful: true,
            ..self
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
    /// Panels, and those behind them that are kept for another kernel.
    Packed(Panels, Option<Box<Panels>>),
    Placed(Placed),
}

/// A matrix that is being read, output by output.
enum Building<'a> {
    Packed(Panels, Option<Box<Panels>>),
    Placed(Rows<'a>),
}

impl Building<'_> {
    fn set_column(&mut self, column: usize, values: &[f32], scale: f32) {
        match self {
            Building::Packed(panels, behind) => {
                let (panels, column) = panels_of(panels, behind, column);
                panels.set_stored(column, values, scale);
            }
            Building::Placed(rows) => rows.set(column, values, scale),
        }
    }

    fn set_bias(&mut self, column: usize, value: f32) {
        match self {
            Building::Packed(panels, behind) => {
                let (panels, column) = panels_of(panels, behind, column);
                panels.set_bias(column, value);
            }
            Building::Placed(rows) => rows.set_bias(column, value),
        }
    }
}

/// The panels that hold a column, and which of theirs it is.
fn panels_of<'a>(
    first: &'a mut Panels,
    behind: &'a mut Option<Box<Panels>>,
    column: usize,
) -> (&'a mut Panels, usize) {
    match behind {
        Some(behind) if column >= first.width() => (behind, column - first.width()),
        _ => (first, column),
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
                let (kernel, careful) = (tensors.kernel(), tensors.careful().kernel());
                let others = parts.iter().take_while(|part| !part.careful);
                let (kernel, split) = match others.map(|part| part.width).sum::<usize>() {
                    others if others == width || kernel == careful => (kernel, width),
                    others if others > 0 && others.is_multiple_of(PANEL) => (kernel, others),
                    // Panels are whole: what would share one with careful columns is kept like them.
                    _ => (careful, width),
                };
                let behind = (split < width).then(|| Box::new(Panels::packed(careful, depth, width - split)));
                let mut panels = Panels::packed(kernel, depth, split);
                if let Some(norm) = norm {
                    panels.even_out(&norm.spread());
                }
                Building::Packed(panels, behind)
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
            Building::Packed(panels, behind) => Form::Packed(panels, behind),
            Building::Placed(rows) => Form::Placed(rows.place()?),
        }))
    }

    fn panels(&self) -> (&Panels, Option<&Panels>) {
        match &self.0 {
            Form::Packed(panels, behind) => (panels, behind.as_deref()),
            Form::Placed(_) => unreachable!("the CPU's engine is made of a model that was packed for it"),
        }
    }

    /// The matrix on its device.
    pub fn placed(&self) -> Placed {
        match &self.0 {
            Form::Placed(placed) => placed.clone(),
            Form::Packed(..) => unreachable!("a device's engine is made of a model that was placed on it"),
        }
    }

    /// Numbers in a row of the product.
    pub fn width(&self) -> usize {
        match &self.0 {
            Form::Packed(panels, behind) => {
                panels.width() + behind.as_ref().map_or(0, |behind| behind.width())
            }
            Form::Placed(placed) => placed.width(),
        }
    }

    /// Numbers of a row of the input that take part.
    pub fn depth(&self) -> usize {
        self.panels().0.depth()
    }

    /// What products with it are computed by, with its last columns at least.
    pub fn kernel(&self) -> Kernel {
        let (panels, behind) = self.panels();
        behind.unwrap_or(panels).kernel()
    }

    /// `output = after(input × weights + bias)`, row by row. Rows of the input begin every `input_stride`
    /// numbers; those of the output lie side by side.
    pub fn product(&self, arch: Arch, input: &[f32], input_stride: usize, output: &mut [f32], after: After) {
        let panels = self.width().div_ceil(PANEL);
        let mut all = Some(0..panels);
        self.product_panels(arch, input, input_stride, output, after, &mut || all.take());
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
        let (panels, behind) = self.panels();
        let (width, first) = (self.width(), panels.panels());
        let rows = output.len() / width;
        // What is handed out of the panels behind, as numbers among those.
        let mut later = SmallVec::<[Range<usize>; 8]>::new();
        let mut split = || {
            while let Some(range) = next() {
                if range.end > first {
                    later.push(range.start.max(first) - first..range.end - first);
                }
                if range.start < first {
                    return Some(range.start..range.end.min(first));
                }
            }
            None
        };
        Linear {
            input,
            input_stride,
            rows,
            weights: panels,
            output,
            output_stride: width,
            after,
        }
        .run_panels(arch, &mut split);
        if let Some(behind) = behind
            && rows > 0
        {
            let mut later = later.into_iter();
            Linear {
                input,
                input_stride,
                rows,
                weights: behind,
                output: &mut output[panels.width()..],
                output_stride: width,
                after,
            }
            .run_panels(arch, &mut || later.next());
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
        let (Matrix(Form::Packed(up, None)), Matrix(Form::Packed(down, None))) = (self, down) else {
            unreachable!("both are packed, with one kernel each");
        };
        kernel::feed_forward(arch, input, up, wide, down, output);
    }
}
