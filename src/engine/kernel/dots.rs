//! Products of narrow numbers in the vector registers: `vdpbf16ps` and `vpdpbusd`, for machines without tiles.

use super::Strip;
use std::arch::x86_64::*;

/// Rows of the largest block: twelve rows of two sums leave registers for the panel's row and a broadcast.
const ROWS: usize = 12;

/// Whether the instructions are there: those of Zen 4 and of Sapphire Rapids and later.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vnni")
}

/// `sums (+)= a × panel`: `rows` rows of `steps` times 64 bytes by a panel of 32 columns. `sums` has 128 bytes
/// to a row, `fresh` ones count as zero. Meanwhile `later` is brought into the second-level cache, line by line between the
/// products, two lines for each word at most: asked for all at once, the lines beyond those that a core can wait for would hold
/// up the products behind them.
///
/// # Safety
/// `a` points to `rows` rows, `a_stride` bytes apart; `panel` to `16 × steps` rows of 128 bytes, `sums` to
/// `rows` of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel: all of it is needed, nothing of it is kept"
)]
pub unsafe fn add<const QUADS: bool>(
    a: *const u8,
    a_stride: usize,
    rows: usize,
    panel: *const u8,
    steps: usize,
    sums: *mut u8,
    fresh: bool,
    later: &[Strip],
) {
    let blocks = rows.div_ceil(ROWS);
    let mut row = 0;
    for block in 0..blocks {
        let count = (rows - row).div_ceil(blocks - block);
        let later = &later[later.len() * block / blocks..later.len() * (block + 1) / blocks];
        // SAFETY: `count` rows from `row` on are within those that the caller vouches for.
        unsafe {
            let (a, sums) = (a.add(row * a_stride), sums.add(row * 128));
            macro_rules! counts {
                ($ahead:literal: $($n:literal),*) => {
                    match count {
                        $($n => rows_of::<$n, QUADS, $ahead>(a, a_stride, panel, steps * 16, sums, fresh, later),)*
                        _ => unreachable!("blocks have one to {ROWS} rows"),
                    }
                };
            }
            if later.is_empty() {
                counts!(false: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
            } else {
                counts!(true: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
            }
        }
        row += count;
    }
}

/// `M` rows of [`add`]; `words` are rows of the panel.
///
/// # Safety
/// As for [`add`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
unsafe fn rows_of<const M: usize, const QUADS: bool, const AHEAD: bool>(
    a: *const u8,
    a_stride: usize,
    panel: *const u8,
    words: usize,
    sums: *mut u8,
    fresh: bool,
    later: &[Strip],
) {
    // A word is a row of the panel, which is two lines.
    const LINES: usize = 2;
    let mut later = later.as_ptr_range();
    let mut held = [[_mm512_setzero_si512(); 2]; M];
    // SAFETY: the caller vouches for M rows of activations and sums, and for `words` rows of the panel.
    unsafe {
        if !fresh {
            for (i, sum) in held.iter_mut().enumerate() {
                *sum = [
                    _mm512_loadu_si512(sums.add(i * 128).cast()),
                    _mm512_loadu_si512(sums.add(i * 128 + 64).cast()),
                ];
            }
        }
        for word in 0..words {
            for _ in 0..if AHEAD { LINES } else { 0 } {
                if later.start < later.end {
                    _mm_prefetch::<_MM_HINT_T1>(later.start.cast());
                    later.start = later.start.add(1);
                }
            }
            let b = [
                _mm512_loadu_si512(panel.add(word * 128).cast()),
                _mm512_loadu_si512(panel.add(word * 128 + 64).cast()),
            ];
            for (i, sum) in held.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(a.add(i * a_stride + word * 4).cast::<i32>().read_unaligned());
                for (sum, b) in sum.iter_mut().zip(b) {
                    *sum = dot::<QUADS>(*sum, x, b);
                }
            }
        }
        for (i, sum) in held.iter().enumerate() {
            _mm512_storeu_si512(sums.add(i * 128).cast(), sum[0]);
            _mm512_storeu_si512(sums.add(i * 128 + 64).cast(), sum[1]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
fn dot<const QUADS: bool>(sum: __m512i, x: __m512i, b: __m512i) -> __m512i {
    if QUADS {
        _mm512_dpbusd_epi32(sum, x, b)
    } else {
        // SAFETY: all are 512 bits without any invalid pattern.
        unsafe {
            let pairs = std::mem::transmute::<__m512i, __m512bh>;
            let (x, b) = (pairs(x), pairs(b));
            _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), x, b))
        }
    }
}
