//! Memory on cache lines, and asking for it before it is needed.

/// Columns of a panel: two registers of AVX-512, four of AVX2, eight of NEON.
pub const PANEL: usize = 32;

/// One row of a panel, on a cache-line boundary: 32 columns of one number, of a pair of bf16 or of four bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Row(pub [f32; PANEL]);

/// Columns of a strip: half a panel.
pub const STRIP: usize = PANEL / 2;

/// One row of half a panel in 32 bits: a cache line. Strips stand one after another, so that a tile as wide as one goes
/// through all sets of the first-level cache; through half of the lines of whole panels it would use but half of the sets.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Strip(pub [f32; STRIP]);

/// Rows as the rows of strips that they are where numbers have 32 bits.
pub fn strips(rows: &[Row]) -> &[Strip] {
    // SAFETY: both are plain numbers on the same boundary, without gaps; two strips have the size of a row.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len() * 2) }
}

/// As [`strips`], to be changed.
pub fn strips_mut(rows: &mut [Row]) -> &mut [Strip] {
    // SAFETY: as above, and the borrow is unique.
    unsafe { std::slice::from_raw_parts_mut(rows.as_mut_ptr().cast(), rows.len() * 2) }
}

/// A row of zeros, in any of these formats.
pub const ZERO: Row = Row([0.0; PANEL]);

/// A reusable buffer of numbers that starts on a cache line. It grows and never shrinks.
#[derive(Debug, Default)]
pub struct Floats(Vec<Row>);

impl Floats {
    /// The first `len` numbers.
    ///
    /// # Panics
    /// There are less.
    pub fn get(&self, len: usize) -> &[f32] {
        // SAFETY: as below, and shared.
        let all = unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<f32>(), self.0.len() * PANEL) };
        &all[..len]
    }

    /// `len` numbers; what they hold is left over from earlier use.
    pub fn take(&mut self, len: usize) -> &mut [f32] {
        let rows = len.div_ceil(PANEL);
        if self.0.len() < rows {
            self.0.resize(rows, ZERO);
        }
        // SAFETY: `Row` is `repr(C)` around an array of `PANEL` numbers whose size is a multiple of its
        // alignment, so rows lie without gaps; the slice covers whole initialised rows and borrows `self`.
        let all = unsafe {
            std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<f32>(), self.0.len() * PANEL)
        };
        &mut all[..len]
    }
}

/// Asks for these rows to be brought into the second-level cache.
#[inline(always)]
pub fn prefetch(rows: &[Strip]) {
    #[cfg(target_arch = "x86_64")]
    for line in rows {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program can see, and the address is that of a live row.
        unsafe { _mm_prefetch::<_MM_HINT_T1>((&raw const *line).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = rows;
}
