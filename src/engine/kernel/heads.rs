//! Attention of one sequence in narrow numbers: scores, softmax and the mixing of values, 32 queries at a time,
//! with everything between the products in the first-level cache.

use super::narrow::{Format, Narrow, mask, rounded, split};
use super::product::{Unit, block};
use super::{Floats, PANEL, Row, ZERO};
use std::arch::x86_64::*;
use std::ops::Range;

/// Queries at a time: two tiles.
const QUERIES: usize = 32;
/// Keys in a panel.
const KEYS: usize = PANEL;
/// Numbers in a line of bf16, which is what a tile takes of a row.
const LINE: usize = 32;

/// How a row of queries, keys and values is shared out.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    /// Heads of queries.
    pub queries: usize,
    /// Heads of keys, and of values; each serves `queries / keys` neighbouring heads of queries.
    pub keys: usize,
    /// Numbers of a head, a multiple of 32.
    pub width: usize,
}

/// Buffers that are used again for every head.
#[derive(Debug, Default)]
pub struct Heads {
    keys: Vec<Row>,
    values: Vec<Row>,
    queries: Narrow,
    weights: Narrow,
    scores: Floats,
    mixed: Floats,
}

impl Heads {
    /// `rows` holds queries, keys and values of one sequence, the queries already scaled, a row for each token;
    /// `output` has a row of all heads of queries for each token, and gets those which the `chosen` heads of keys serve.
    /// `format` is pairs or split.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
    pub fn run(
        &mut self,
        unit: &Unit,
        format: Format,
        heads: Shares,
        chosen: Range<usize>,
        rows: &[f32],
        output: &mut [f32],
    ) {
        let Shares { queries, keys, width } = heads;
        let (stride, out_stride) = ((queries + 2 * keys) * width, queries * width);
        let tokens = output.len() / out_stride;
        assert!(width.is_multiple_of(LINE) && rows.len() == tokens * stride && format != Format::Quads);
        let panels = tokens.div_ceil(KEYS);
        let planes = format.planes();
        self.keys.resize(panels * planes * width / 2, ZERO);
        self.values
            .resize(width / PANEL * planes * panels * KEYS / 2, ZERO);
        for group in chosen {
            let key = (queries + group) * width;
            let value = key + keys * width;
            self.pack_keys(format, &rows[key..], stride, tokens, width);
            self.pack_values(format, &rows[value..], stride, tokens);
            for head in group * (queries / keys)..(group + 1) * (queries / keys) {
                for start in (0..tokens).step_by(QUERIES) {
                    let count = QUERIES.min(tokens - start);
                    self.queries.reset(format, count, width);
                    self.queries
                        .fill(&rows[start * stride + head * width..], stride, &[]);
                    self.score(unit, count, panels, width);
                    let sums = match format {
                        Format::Split => self.soften::<true>(format, count, tokens),
                        Format::Pairs | Format::Quads => self.soften::<false>(format, count, tokens),
                    };
                    let output = &mut output[start * out_stride + head * width..];
                    self.mix(unit, &sums[..count], panels, width, output, out_stride);
                }
            }
        }
    }

    /// Panels of 32 keys: a row of a panel holds two neighbouring numbers of each key. Keys that are not there
    /// are zero.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
    fn pack_keys(&mut self, format: Format, rows: &[f32], stride: usize, tokens: usize, width: usize) {
        let plane = width / 2;
        for (panel, out) in self.keys.chunks_exact_mut(plane * format.planes()).enumerate() {
            for half in 0..2 {
                let first = panel * KEYS + half * 16;
                for part in 0..width / LINE {
                    let mut lead = [_mm512_setzero_si512(); 16];
                    let mut rest = lead;
                    for i in 0..16.min(tokens.saturating_sub(first)) {
                        let row = &rows[(first + i) * stride + part * LINE..][..LINE];
                        let [low, high] = registers(row);
                        if format == Format::Split {
                            (lead[i], rest[i]) = split(low, high);
                        } else {
                            lead[i] = rounded(low, high);
                        }
                    }
                    let out = &mut out[part * LINE / 2..];
                    put_half(out, half, transposed(&lead));
                    if format == Format::Split {
                        put_half(&mut out[plane..], half, transposed(&rest));
                    }
                }
            }
        }
    }

    /// Panels of 32 numbers of the values: a row of a panel holds the numbers of two neighbouring tokens.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
    fn pack_values(&mut self, format: Format, rows: &[f32], stride: usize, tokens: usize) {
        let plane = tokens.div_ceil(KEYS) * KEYS / 2;
        let none = [0.0; PANEL];
        for (panel, out) in self.values.chunks_exact_mut(plane * format.planes()).enumerate() {
            let row = |token: usize| match token < tokens {
                true => &rows[token * stride + panel * PANEL..][..PANEL],
                false => &none[..],
            };
            for pair in 0..plane {
                let (even, odd) = (registers(row(2 * pair)), registers(row(2 * pair + 1)));
                for half in 0..2 {
                    let (lead, even_rest, odd_rest) = interleaved(even[half], odd[half]);
                    put_one(&mut out[pair], half, lead);
                    if format == Format::Split {
                        let (rest, ..) = interleaved(even_rest, odd_rest);
                        put_one(&mut out[plane + pair], half, rest);
                    }
                }
            }
        }
    }

    /// Scores of the queries with all keys: a block of 32 by 32 for each panel.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
    fn score(&mut self, unit: &Unit, count: usize, panels: usize, width: usize) {
        let planes = self.keys.len() / panels / (width / 2);
        let scores = self
            .scores
            .take(panels * QUERIES * KEYS)
            .as_mut_ptr()
            .cast::<u8>();
        for panel in 0..panels {
            let keys = &self.keys[panel * planes * width / 2..][..planes * width / 2];
            let a = |plane: usize| {
                self.queries
                    .row(0)
                    .wrapping_add(plane * self.queries.plane_bytes())
            };
            let b = |plane: usize| keys[plane * width / 2..].as_ptr().cast::<u8>();
            // SAFETY: the queries have rows up to a multiple of 16, of `width` numbers; the panel has a row for
            // each two of them; the scores have room for 32 rows for each panel.
            unsafe {
                let scores = scores.add(panel * QUERIES * 128);
                block::<false>(
                    unit,
                    a,
                    b,
                    |_| &[],
                    self.queries.stride_bytes(),
                    count,
                    width / LINE,
                    planes,
                    scores,
                    true,
                    || (),
                );
            }
        }
    }

    /// `e^(score − largest)` of each row as the next product's activations, and the sums of the rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
    fn soften<const SPLIT: bool>(&mut self, format: Format, count: usize, tokens: usize) -> [f32; QUERIES] {
        let panels = tokens.div_ceil(KEYS);
        self.weights.reset(format, count, panels * KEYS);
        let scores = self.scores.take(panels * QUERIES * KEYS);
        let plane = self.weights.plane_bytes();
        let behind = tokens - (panels - 1) * KEYS;
        let seen = [mask(behind), mask(behind.saturating_sub(16))];
        let mut sums = [0.0; QUERIES];
        for (row, sum) in sums.iter_mut().enumerate().take(count) {
            let mut most = [_mm512_set1_ps(UNSEEN); 2];
            let blocks = &scores[row * KEYS..];
            for panel in 0..panels - 1 {
                let both = registers(&blocks[panel * QUERIES * KEYS..]);
                most = [_mm512_max_ps(most[0], both[0]), _mm512_max_ps(most[1], both[1])];
            }
            // Keys that are not there are only in the last panel.
            let end = registers(&blocks[(panels - 1) * QUERIES * KEYS..]);
            for half in 0..2 {
                most[half] = _mm512_mask_max_ps(most[half], seen[half], most[half], end[half]);
            }
            let most = _mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1]));
            let shift = _mm512_set1_ps(-most * std::f32::consts::LOG2_E);
            let mut totals = [_mm512_setzero_ps(); 2];
            let out = self.weights.row_mut(row);
            for panel in 0..panels {
                let mut both = registers(&blocks[panel * QUERIES * KEYS..]);
                for half in &mut both {
                    let x = _mm512_fmadd_ps(*half, _mm512_set1_ps(std::f32::consts::LOG2_E), shift);
                    *half = if SPLIT {
                        exp2::<6>(x, &EXP2_EXACT)
                    } else {
                        exp2::<4>(x, &EXP2)
                    };
                }
                if panel + 1 == panels {
                    for half in 0..2 {
                        both[half] = _mm512_maskz_mov_ps(seen[half], both[half]);
                    }
                }
                totals = [
                    _mm512_add_ps(totals[0], both[0]),
                    _mm512_add_ps(totals[1], both[1]),
                ];
                // SAFETY: a row of weights has a line for each panel, in each plane.
                unsafe {
                    let out = out.add(panel * 64);
                    if SPLIT {
                        let (lead, rest) = split(both[0], both[1]);
                        _mm512_store_si512(out.cast(), lead);
                        _mm512_store_si512(out.add(plane).cast(), rest);
                    } else {
                        _mm512_store_si512(out.cast(), rounded(both[0], both[1]));
                    }
                }
            }
            *sum = _mm512_reduce_add_ps(_mm512_add_ps(totals[0], totals[1]));
        }
        sums
    }

    /// The values, mixed by the weights of each query.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
    fn mix(
        &mut self,
        unit: &Unit,
        sums: &[f32],
        panels: usize,
        width: usize,
        output: &mut [f32],
        out_stride: usize,
    ) {
        let plane = panels * KEYS / 2;
        let planes = self.values.len() / (width / PANEL) / plane;
        let mixed = self.mixed.take(QUERIES * PANEL);
        for panel in 0..width / PANEL {
            let values = &self.values[panel * planes * plane..][..planes * plane];
            let a = |plane: usize| {
                self.weights
                    .row(0)
                    .wrapping_add(plane * self.weights.plane_bytes())
            };
            let b = |at: usize| values[at * plane..].as_ptr().cast::<u8>();
            // SAFETY: the weights have rows up to a multiple of 16, of a line for each panel of keys; the values
            // have a row for each two keys; `mixed` has 32 rows.
            unsafe {
                let mixed = mixed.as_mut_ptr().cast::<u8>();
                block::<false>(
                    unit,
                    a,
                    b,
                    |_| &[],
                    self.weights.stride_bytes(),
                    sums.len(),
                    panels,
                    planes,
                    mixed,
                    true,
                    || (),
                );
            }
            for (row, sum) in sums.iter().enumerate() {
                let factor = _mm512_set1_ps(1.0 / sum);
                let [low, high] = registers(&mixed[row * PANEL..][..PANEL]);
                let out = &mut output[row * out_stride + panel * PANEL..][..PANEL];
                // SAFETY: 32 numbers.
                unsafe {
                    _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(low, factor));
                    _mm512_storeu_ps(out.as_mut_ptr().add(16), _mm512_mul_ps(high, factor));
                }
            }
        }
    }
}

/// The score of a key that is not there.
const UNSEEN: f32 = -1e30;

/// `2ʳ` within half of one to each side, lowest power first: fits good to 8·10⁻⁵, which is a fiftieth of the last
/// place of bf16, and to 8·10⁻⁸.
const EXP2: [f32; 4] = [0.999_928_06, 0.693_260_97, 0.242_611_13, 0.055_171_65];
const EXP2_EXACT: [f32; 6] = [
    1.000_000_1,
    0.693_146_94,
    0.240_221_2,
    0.055_507_135,
    0.009_675_541,
    0.001_327_647,
];

/// `2ˣ`; what is below the least normal number becomes about that.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2<const N: usize>(x: __m512, fit: &[f32; N]) -> __m512 {
    let x = _mm512_max_ps(x, _mm512_set1_ps(-126.0));
    let whole = _mm512_roundscale_ps::<0>(x);
    let r = _mm512_sub_ps(x, whole);
    let mut p = _mm512_set1_ps(fit[N - 1]);
    for c in fit[..N - 1].iter().rev() {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
    }
    _mm512_scalef_ps(p, whole)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn registers(row: &[f32]) -> [__m512; 2] {
    assert!(row.len() >= 32);
    // SAFETY: 32 numbers.
    unsafe {
        [
            _mm512_loadu_ps(row.as_ptr()),
            _mm512_loadu_ps(row.as_ptr().add(16)),
        ]
    }
}

/// Two rows as bf16 side by side, number by number, and what the rounding left.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleaved(even: __m512, odd: __m512) -> (__m512i, __m512, __m512) {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let half = _mm512_set1_epi32(0x8000);
    let even_lead = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(even), half), upper);
    let odd_lead = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(odd), half), upper);
    (
        _mm512_or_si512(_mm512_srli_epi32::<16>(even_lead), odd_lead),
        _mm512_sub_ps(even, _mm512_castsi512_ps(even_lead)),
        _mm512_sub_ps(odd, _mm512_castsi512_ps(odd_lead)),
    )
}

/// Writes 16 words into one half of each of 16 rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn put_half(rows: &mut [Row], half: usize, words: [__m512i; 16]) {
    for (row, words) in rows[..16].iter_mut().zip(words) {
        put_one(row, half, words);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn put_one(row: &mut Row, half: usize, words: __m512i) {
    // SAFETY: half of a row of 128 bytes.
    unsafe { _mm512_storeu_si512(row.0[half * 16..].as_mut_ptr().cast(), words) }
}

/// Sixteen rows of 16 words, turned.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: &[__m512i; 16]) -> [__m512i; 16] {
    // Words of two rows, then of four rows in each quarter, then quarters of all sixteen.
    let (mut two, mut four, mut all) = (*rows, *rows, *rows);
    for i in (0..16).step_by(2) {
        two[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        two[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for i in (0..16).step_by(4) {
        for j in 0..2 {
            four[i + 2 * j] = _mm512_unpacklo_epi64(two[i + j], two[i + j + 2]);
            four[i + 2 * j + 1] = _mm512_unpackhi_epi64(two[i + j], two[i + j + 2]);
        }
    }
    for c in 0..4 {
        let even = _mm512_shuffle_i32x4::<0x88>(four[c], four[4 + c]);
        let odd = _mm512_shuffle_i32x4::<0xdd>(four[c], four[4 + c]);
        let even_end = _mm512_shuffle_i32x4::<0x88>(four[8 + c], four[12 + c]);
        let odd_end = _mm512_shuffle_i32x4::<0xdd>(four[8 + c], four[12 + c]);
        all[c] = _mm512_shuffle_i32x4::<0x88>(even, even_end);
        all[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd, odd_end);
        all[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even, even_end);
        all[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_end);
    }
    all
}
