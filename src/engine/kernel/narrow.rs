//! Activations as the narrow kernels read them: pairs of bf16, or bytes with a scale for each group of a row.

use super::GROUP;
use std::arch::x86_64::*;

/// What a product computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Each number rounded to bf16.
    #[default]
    Pairs,
    /// Each number as the sum of two bf16, which holds 16 to 17 of the 24 bits of an f32. Three products of
    /// bf16 (high by high, high by low, low by high) then are one of such numbers.
    Split,
    /// Each number as one of 256 steps between the least and the greatest of its [`GROUP`].
    Quads,
}

impl Format {
    /// Numbers in four bytes, the unit in which the kernels walk along a row.
    pub fn numbers_in_word(self) -> usize {
        match self {
            Format::Pairs | Format::Split => 2,
            Format::Quads => 4,
        }
    }

    /// Numbers of a row in a step of 64 bytes.
    pub fn numbers_in_step(self) -> usize {
        16 * self.numbers_in_word()
    }

    /// Copies of a matrix that lie behind one another.
    pub fn planes(self) -> usize {
        match self {
            Format::Split => 2,
            Format::Pairs | Format::Quads => 1,
        }
    }

    /// Steps of 64 bytes for a row of `depth` numbers.
    pub fn steps(self, depth: usize) -> usize {
        depth.div_ceil(self.numbers_in_step())
    }
}

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line([u8; 64]);

/// Rows of activations in a [`Format`]. The buffer grows and never shrinks.
#[derive(Debug, Default)]
pub struct Narrow {
    lines: Vec<Line>,
    format: Format,
    rows: usize,
    depth: usize,
    /// From one row to the next, in lines: an odd number, so that the rows of a tile do not fall on each
    /// other in the first-level cache.
    stride: usize,
    plane: usize,
    /// Of rows of bytes, group by group: step and least number.
    grid: Vec<[f32; 2]>,
}

impl Narrow {
    /// Makes room for `rows` rows of `depth` numbers. What they hold is left over from earlier use.
    pub fn reset(&mut self, format: Format, rows: usize, depth: usize) {
        (self.format, self.rows, self.depth) = (format, rows, depth);
        self.stride = format.steps(depth) | 1;
        // Tiles read 16 rows, whether they are wanted or not.
        self.plane = rows.next_multiple_of(16) * self.stride;
        let lines = self.plane * format.planes();
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 64]));
        }
        let groups = rows * depth.div_ceil(GROUP);
        if format == Format::Quads && self.grid.len() < groups {
            self.grid.resize(groups, [0.0; 2]);
        }
    }

    /// See [`Format`].
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows of numbers, without those that fill up a tile.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// From one row to the next, in bytes.
    pub fn stride_bytes(&self) -> usize {
        self.stride * 64
    }

    /// From one plane to the next, in bytes.
    pub fn plane_bytes(&self) -> usize {
        self.plane * 64
    }

    /// Where the row begins, in the first plane; rows up to the next multiple of 16 may be read.
    pub fn row(&self, row: usize) -> *const u8 {
        self.lines[row * self.stride..].as_ptr().cast()
    }

    /// As [`Narrow::row`], to be written.
    pub fn row_mut(&mut self, row: usize) -> *mut u8 {
        self.lines[row * self.stride..].as_mut_ptr().cast()
    }

    /// Step and least number of each group of a row of bytes.
    pub fn grid(&self, row: usize) -> &[[f32; 2]] {
        let groups = self.depth.div_ceil(GROUP);
        &self.grid[row * groups..][..groups]
    }

    /// Sets the rows from the first on to those of `input`, which lie `input_stride` numbers apart. Bytes are
    /// made of the numbers times `factors`, one for each place in a row, if there are any.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
    pub fn fill(&mut self, input: &[f32], input_stride: usize, factors: &[f32]) {
        let (depth, stride, plane) = (self.depth, self.stride, self.plane);
        for row in 0..self.rows {
            let input = &input[row * input_stride..][..depth];
            match self.format {
                Format::Pairs => {
                    let lines = &mut self.lines[row * stride..][..stride];
                    for (line, part) in lines.iter_mut().zip(input.chunks(32)) {
                        let [low, high] = load(part);
                        put(line, rounded(low, high));
                    }
                }
                Format::Split => {
                    let (first, second) = self.lines.split_at_mut(plane);
                    let (first, second) = (&mut first[row * stride..], &mut second[row * stride..]);
                    for (at, part) in input.chunks(32).enumerate() {
                        let [low, high] = load(part);
                        let (lead, rest) = split(low, high);
                        put(&mut first[at], lead);
                        put(&mut second[at], rest);
                    }
                }
                Format::Quads => {
                    let lines = &mut self.lines[row * stride..][..stride];
                    let grid = &mut self.grid[row * depth.div_ceil(GROUP)..];
                    for (group, first) in (0..depth).step_by(GROUP).enumerate() {
                        let end = depth.min(first + GROUP);
                        grid[group] = bytes_of(&input[..end], factors, first, &mut lines[first / 64..]);
                    }
                }
            }
        }
    }
}

/// Makes bytes of the numbers of one group, which are those from `first` on. Their step and least number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
fn bytes_of(input: &[f32], factors: &[f32], first: usize, lines: &mut [Line]) -> [f32; 2] {
    let (mut least, mut most) = (_mm512_set1_ps(f32::INFINITY), _mm512_set1_ps(f32::NEG_INFINITY));
    let mut values = [_mm512_setzero_ps(); GROUP / 16];
    for (at, value) in (first..input.len()).step_by(16).zip(&mut values) {
        let mask = mask(input.len() - at);
        *value = times(&input[at..], factors, at, mask);
        least = _mm512_mask_min_ps(least, mask, least, *value);
        most = _mm512_mask_max_ps(most, mask, most, *value);
    }
    let (least, most) = (_mm512_reduce_min_ps(least), _mm512_reduce_max_ps(most));
    let (step, per_step) = steps_of(least, most);
    let (base, factor) = (_mm512_set1_ps(least), _mm512_set1_ps(per_step));
    for (at, value) in (first..input.len()).step_by(16).zip(values) {
        let q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(value, base), factor));
        let bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512()));
        let at = at - first;
        let quarter = lines[at / 64].0[at % 64..].as_mut_ptr();
        // SAFETY: a quarter of a line.
        unsafe { _mm_storeu_si128(quarter.cast(), bytes) };
    }
    [step, least]
}

/// Up to 16 numbers, times the factors from `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
fn times(input: &[f32], factors: &[f32], at: usize, mask: u16) -> __m512 {
    assert!(input.len() >= mask.count_ones() as usize);
    // SAFETY: the mask covers no more than the input holds.
    let v = unsafe { _mm512_maskz_loadu_ps(mask, input.as_ptr()) };
    if factors.is_empty() {
        return v;
    }
    let factors = &factors[at..];
    assert!(factors.len() >= mask.count_ones() as usize);
    // SAFETY: the same of the factors.
    _mm512_mul_ps(v, unsafe { _mm512_maskz_loadu_ps(mask, factors.as_ptr()) })
}

/// The step between two bytes, and what a number is multiplied with to count steps. A row whose numbers are
/// all alike has steps of nothing.
fn steps_of(least: f32, most: f32) -> (f32, f32) {
    let range = most - least;
    if range > f32::MIN_POSITIVE * 255.0 {
        (range / 255.0, 255.0 / range)
    } else {
        (range / 255.0, 0.0)
    }
}

/// A mask of the first `count` of 16 lanes.
pub fn mask(count: usize) -> u16 {
    (0xffff_u32 >> (16 - count.min(16))) as u16
}

/// Up to 32 numbers, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
fn load(part: &[f32]) -> [__m512; 2] {
    let low = mask(part.len());
    let high = mask(part.len().saturating_sub(16));
    // SAFETY: the masks cover no more than the part holds; what is masked off is not read.
    unsafe {
        [
            _mm512_maskz_loadu_ps(low, part.as_ptr()),
            _mm512_maskz_loadu_ps(high, part.as_ptr().wrapping_add(16)),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn put(line: &mut Line, value: __m512i) {
    // SAFETY: a line is 64 aligned bytes.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), value) }
}

/// 32 numbers as bf16, rounded to the nearest.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
pub fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 512 bits without any invalid pattern.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// 32 numbers as sums of two bf16. The first is rounded half up in magnitude, so that the rest needs no more
/// bits than it has; infinities leave a rest that is no number, which spoils the sum as it should.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
pub fn split(low: __m512, high: __m512) -> (__m512i, __m512i) {
    let lead = |v: __m512| {
        let bits = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
        _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
    };
    let (low_lead, high_lead) = (lead(low), lead(high));
    let rest = rounded(_mm512_sub_ps(low, low_lead), _mm512_sub_ps(high, high_lead));
    (rounded(low_lead, high_lead), rest)
}

/// As [`rounded`] for one number, on any machine.
pub fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// As [`split`] for one number, on any machine.
pub fn halves(value: f32) -> (u16, u16) {
    let lead = value.to_bits().wrapping_add(0x8000) & 0xffff_0000;
    ((lead >> 16) as u16, bf16(value - f32::from_bits(lead)))
}
