//! Weights, cut into panels once at load, in the format that their kernel reads.

use super::choice::{Kernel, Rounding};
#[cfg(target_arch = "x86_64")]
use super::narrow::{Format, bf16, halves};
use super::{PANEL, Row, STRIP, Strip, ZERO, strips_mut};

/// A matrix of `depth` rows and `width` columns cut into panels, and what is added to each row of a product.
///
/// A panel holds [`PANEL`] columns. A row of it holds two numbers of bf16 of each column, or four bytes, which are
/// neighbours along the depth. Narrow panels are filled up with zeros to whole tiles. In 32 bits a panel is two strips of
/// [`STRIP`] columns, one after the other; a row of them holds one number of each column.
#[derive(Debug, Default)]
pub struct Panels {
    pub(super) depth: usize,
    pub(super) width: usize,
    kernel: Kernel,
    /// Rows of one panel, all planes of it.
    panel_rows: usize,
    pub(super) rows: Vec<Row>,
    pub(super) bias: Vec<Row>,
    /// Of bytes: what activations are multiplied with, and columns divided by; nothing if there is no such thing.
    factors: Vec<f32>,
    /// Of bytes, group by group of each panel: the step of each column, and the sum of the column.
    scale: Vec<Row>,
    total: Vec<Row>,
}

/// Numbers of a row of activations, or of a column of weights, that share one step in bytes. In a whole row or column of a
/// feed-forward part a few large numbers would leave too few steps to the others.
pub const GROUP: usize = 128;

impl Panels {
    /// A matrix of zeros with a bias of zeros for this kernel.
    pub fn packed(kernel: Kernel, depth: usize, width: usize) -> Panels {
        let mut panels = Panels {
            kernel,
            ..Panels::default()
        };
        panels.reset(depth, width);
        panels
    }

    /// Takes another shape, keeping the memory. Columns beyond `width` are zero; the others are to be set.
    pub fn reset(&mut self, depth: usize, width: usize) {
        let count = width.div_ceil(PANEL);
        (self.depth, self.width) = (depth, width);
        self.panel_rows = match self.kernel {
            Kernel::Floats | Kernel::Rounded(_) => depth,
            #[cfg(target_arch = "x86_64")]
            Kernel::Narrow(format, _) => format.steps(depth) * 16 * format.planes(),
        };
        self.rows.resize(count * self.panel_rows, ZERO);
        self.bias.resize(count, ZERO);
        if !width.is_multiple_of(PANEL) {
            self.rows[(count - 1) * self.panel_rows..].fill(ZERO);
        }
        #[cfg(target_arch = "x86_64")]
        if let Kernel::Narrow(Format::Quads, _) = self.kernel {
            let groups = count * depth.div_ceil(GROUP);
            self.scale.resize(groups, ZERO);
            self.total.resize(groups, ZERO);
        }
    }

    /// Which kernel reads it.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Columns of the matrix, which are those of a product with it.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Panels that the columns fill.
    pub fn panels(&self) -> usize {
        self.width.div_ceil(PANEL)
    }

    /// Rows of the matrix, which are the columns of what is multiplied with it.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Tells how far the activations spread at each place of a row, roughly. In bytes many of a row share one
    /// step, so that a few wide places would leave too few steps to the others: they are divided by their
    /// spread, and the weights multiplied with it. To be called before any column is set.
    pub fn even_out(&mut self, spread: &[f32]) {
        assert_eq!(spread.len(), self.depth, "a spread for each place of a row");
        let bytes = match self.kernel {
            Kernel::Rounded(Rounding::Int8) => true,
            #[cfg(target_arch = "x86_64")]
            Kernel::Narrow(Format::Quads, _) => true,
            _ => false,
        };
        let most = spread.iter().fold(0.0f32, |most, v| most.max(*v));
        if bytes && most > 0.0 {
            // A place that hardly spreads is not blown up without bound.
            self.factors = spread.iter().map(|v| most / v.max(most * 1e-3)).collect();
        }
    }

    /// See [`Panels::even_out`].
    pub(super) fn factors(&self) -> &[f32] {
        &self.factors
    }

    /// Sets column `column` from `values`, one for each row, each times `scale`.
    pub fn set_column(&mut self, column: usize, values: impl Iterator<Item = f32>, scale: f32) {
        assert!(column < self.width, "column {column} of {}", self.width);
        let (panel, lane) = (column / PANEL, column % PANEL);
        let factors = &self.factors;
        let even = |k: usize| {
            if factors.is_empty() {
                scale
            } else {
                scale / factors[k]
            }
        };
        let values = values
            .take(self.depth)
            .enumerate()
            .map(|(k, value)| value * even(k));
        let rows = &mut self.rows[panel * self.panel_rows..][..self.panel_rows];
        match self.kernel {
            Kernel::Floats => {
                for (row, value) in strip_mut(rows, lane).iter_mut().zip(values) {
                    row.0[lane % STRIP] = value;
                }
            }
            Kernel::Rounded(rounding) => {
                let mut column: Vec<f32> = values.collect();
                match rounding {
                    Rounding::Bf16 => super::choice::round_bf16(&mut column),
                    Rounding::Int8 => {
                        for group in column.chunks_mut(GROUP) {
                            let (step, per_step) = column_steps(group);
                            group
                                .iter_mut()
                                .for_each(|v| *v = (*v * per_step).round_ties_even() * step);
                        }
                    }
                }
                for (row, value) in strip_mut(rows, lane).iter_mut().zip(column) {
                    row.0[lane % STRIP] = value;
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Narrow(format, _) => match format {
                Format::Pairs => {
                    for (k, value) in values.enumerate() {
                        set_half(&mut rows[k / 2].0[lane], k % 2, bf16(value));
                    }
                }
                Format::Split => {
                    let (first, second) = rows.split_at_mut(self.panel_rows / 2);
                    for (k, value) in values.enumerate() {
                        let (lead, rest) = halves(value);
                        set_half(&mut first[k / 2].0[lane], k % 2, lead);
                        set_half(&mut second[k / 2].0[lane], k % 2, rest);
                    }
                }
                Format::Quads => {
                    let column: Vec<f32> = values.collect();
                    self.set_bytes(panel, lane, &column);
                }
            },
        }
    }

    /// As [`Panels::set_column`], from numbers that lie side by side and are finite: the way of all weights at load,
    /// and so in loops that the compiler can make of vectors.
    pub fn set_stored(&mut self, column: usize, values: &[f32], scale: f32) {
        assert!(
            column < self.width && values.len() == self.depth,
            "column {column} of {} with {} of {} numbers",
            self.width,
            values.len(),
            self.depth
        );
        let (panel, lane) = (column / PANEL, column % PANEL);
        let rows = &mut self.rows[panel * self.panel_rows..][..self.panel_rows];
        match self.kernel {
            Kernel::Floats => {
                for (row, value) in strip_mut(rows, lane).iter_mut().zip(values) {
                    row.0[lane % STRIP] = value * scale;
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Narrow(Format::Pairs, _) => {
                scatter(rows, lane, values, |even, odd| {
                    pair(bf16(even * scale), bf16(odd * scale))
                });
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Narrow(Format::Split, _) => {
                let (first, second) = rows.split_at_mut(self.panel_rows / 2);
                let both = |even: f32, odd: f32| (halves(even * scale), halves(odd * scale));
                scatter(first, lane, values, |even, odd| {
                    let (even, odd) = both(even, odd);
                    pair(even.0, odd.0)
                });
                scatter(second, lane, values, |even, odd| {
                    let (even, odd) = both(even, odd);
                    pair(even.1, odd.1)
                });
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Narrow(Format::Quads, _) => {
                let column: Vec<f32> = if self.factors.is_empty() {
                    values.iter().map(|value| value * scale).collect()
                } else {
                    let both = values.iter().zip(&self.factors);
                    both.map(|(value, factor)| value * (scale / factor)).collect()
                };
                self.set_bytes(panel, lane, &column);
            }
            Kernel::Rounded(_) => self.set_column(column, values.iter().copied(), scale),
        }
    }

    /// Sets row `row` of a matrix in 32 bits from `values`, one for each column.
    pub fn set_row(&mut self, row: usize, values: &[f32]) {
        assert!(
            self.kernel == Kernel::Floats && row < self.depth && values.len() == self.width,
            "row {row} of {}",
            self.depth
        );
        let strips = strips_mut(&mut self.rows);
        for (strip, part) in values.chunks(STRIP).enumerate() {
            strips[strip * self.depth + row].0[..part.len()].copy_from_slice(part);
        }
    }

    /// Sets what is added to column `column` of every product.
    pub fn set_bias(&mut self, column: usize, value: f32) {
        self.bias[column / PANEL].0[column % PANEL] = value;
    }
}

#[cfg(target_arch = "x86_64")]
impl Panels {
    /// Sets a column of bytes.
    fn set_bytes(&mut self, panel: usize, lane: usize, column: &[f32]) {
        let rows = &mut self.rows[panel * self.panel_rows..][..self.panel_rows];
        let first = panel * self.depth.div_ceil(GROUP);
        let groups = column.chunks(GROUP).zip(rows.chunks_mut(GROUP / 4));
        for (at, (group, rows)) in groups.enumerate() {
            let (step, per_step) = column_steps(group);
            let mut bytes = [0; GROUP];
            for (byte, value) in bytes.iter_mut().zip(group) {
                // Nearest, of two equally near ones the even: the last bits of a number as large as this are whole ones.
                *byte = (value * per_step + 12_582_912.0).to_bits() as i8;
            }
            let total: i32 = bytes.iter().map(|byte| i32::from(*byte)).sum();
            let (words, _) = bytes.as_chunks::<4>();
            for (row, word) in rows.iter_mut().zip(&words[..group.len().div_ceil(4)]) {
                row.0[lane] = f32::from_bits(u32::from_le_bytes(word.map(|byte| byte as u8)));
            }
            self.scale[first + at].0[lane] = step;
            self.total[first + at].0[lane] = total as f32 * step;
        }
    }

    /// In which format activations have to be.
    pub(super) fn format(&self) -> Option<Format> {
        match self.kernel {
            Kernel::Narrow(format, _) => Some(format),
            _ => None,
        }
    }

    /// The rows of one panel.
    pub(super) fn panel(&self, panel: usize) -> &[Row] {
        &self.rows[panel * self.panel_rows..][..self.panel_rows]
    }

    /// What is added to each column.
    pub(super) fn bias(&self, panel: usize) -> &Row {
        &self.bias[panel]
    }

    /// The step of each column of bytes in a group of the depth, and the sum of those numbers.
    pub(super) fn grid(&self, panel: usize, group: usize) -> [&Row; 2] {
        let at = panel * self.depth.div_ceil(GROUP) + group;
        [&self.scale[at], &self.total[at]]
    }
}

/// The strip of a panel in 32 bits that holds column `lane` of it.
fn strip_mut(panel: &mut [Row], lane: usize) -> &mut [Strip] {
    let depth = panel.len();
    let (first, second) = strips_mut(panel).split_at_mut(depth);
    if lane < STRIP { first } else { second }
}

/// The step of bytes from −127 to 127 for a part of a column, and steps in one. One of zeros has no steps.
fn column_steps(column: &[f32]) -> (f32, f32) {
    // Sixteen at once, which the compiler makes vectors of.
    let (chunks, rest) = column.as_chunks::<16>();
    let mut lanes = [0.0f32; 16];
    for values in chunks {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = lane.max(value.abs());
        }
    }
    let most = lanes
        .iter()
        .chain(rest)
        .fold(0.0f32, |most, value| most.max(value.abs()));
    if most > f32::MIN_POSITIVE * 127.0 {
        (most / 127.0, 127.0 / most)
    } else {
        (0.0, 0.0)
    }
}

/// Two neighbours along the depth in one word.
#[cfg(target_arch = "x86_64")]
fn pair(even: u16, odd: u16) -> u32 {
    u32::from(even) | u32::from(odd) << 16
}

/// Makes words of pairs of numbers, many at once, and puts them into the `lane` of one row after another.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn scatter(rows: &mut [Row], lane: usize, values: &[f32], word: impl Fn(f32, f32) -> u32) {
    /// Pairs made before they are put away.
    const AT_ONCE: usize = 64;
    let mut words = [0; AT_ONCE];
    for (values, rows) in values.chunks(2 * AT_ONCE).zip(rows.chunks_mut(AT_ONCE)) {
        let (pairs, last) = values.as_chunks::<2>();
        for (out, [even, odd]) in words.iter_mut().zip(pairs) {
            *out = word(*even, *odd);
        }
        if let [last] = last {
            words[pairs.len()] = word(*last, 0.0);
        }
        for (row, word) in rows.iter_mut().zip(&words[..values.len().div_ceil(2)]) {
            row.0[lane] = f32::from_bits(*word);
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn set_half(word: &mut f32, half: usize, bits: u16) {
    let shift = 16 * half;
    *word = f32::from_bits(word.to_bits() & !(0xffff << shift) | u32::from(bits) << shift);
}
