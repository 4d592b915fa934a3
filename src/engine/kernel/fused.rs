//! The innermost loop of products in 32 bits on AVX2 and AVX-512, in assembly.
//!
//! In Rust the compiler works the addresses out anew for each row of the weights, on the ports of the products, and where it
//! is asked to do several rows in one turn it moves the sums between registers. Here a turn does four rows with three or four
//! additions, and the sums stay where they are. The registers are named, so that nothing depends on the code around.

use super::Strip;
use std::arch::asm;

/// A tile of the product: some rows of activations by one strip of weights, on AVX-512 also by two or four.
pub struct Tile {
    /// Where the activations begin.
    pub a: *const f32,
    /// Bytes from one row of them to the next.
    pub a_stride: usize,
    /// Where the first strip begins.
    pub strips: *const Strip,
    /// Bytes from one strip to the next.
    pub apart: usize,
    /// Numbers of a row of activations, which are rows of a strip.
    pub length: usize,
    /// What the sums begin with.
    pub from: *const f32,
    /// Bytes from one row of it to the next; none where all rows begin with the same.
    pub from_stride: usize,
    /// Where the sums go.
    pub to: *mut f32,
    /// Bytes from one row of them to the next.
    pub to_stride: usize,
    /// Where four strips are gone through at once: the strip, and the one behind it, that are brought into the second-level
    /// cache meanwhile, line by line between the products. Nothing is read there, whatever it points to.
    pub later: *const Strip,
}

/// Where a row of activations stands; `{t}` is the fourth.
macro_rules! row {
    (0) => {
        "[{a}"
    };
    (1) => {
        "[{a} + {s}"
    };
    (2) => {
        "[{a} + 2*{s}"
    };
    (3) => {
        "[{t}"
    };
    (4) => {
        "[{t} + {s}"
    };
    (5) => {
        "[{t} + 2*{s}"
    };
}

/// The registers of AVX2. Twelve are sums, two for each row, which are the halves of a strip; two hold a row of the strip, and
/// two in turns hold a number of the activations, spread out.
#[rustfmt::skip]
macro_rules! avx2 {
    (sum 0 0) => { "ymm4" }; (sum 0 1) => { "ymm5" };
    (sum 1 0) => { "ymm6" }; (sum 1 1) => { "ymm7" };
    (sum 2 0) => { "ymm8" }; (sum 2 1) => { "ymm9" };
    (sum 3 0) => { "ymm10" }; (sum 3 1) => { "ymm11" };
    (sum 4 0) => { "ymm12" }; (sum 4 1) => { "ymm13" };
    (sum 5 0) => { "ymm14" }; (sum 5 1) => { "ymm15" };
    (weights $p:tt) => { concat!("ymm", $p) };
    (at 0) => { "[{b}" }; (at 1) => { "[{b} + 32" };
    (number 0) => { "ymm2" }; (number 2) => { "ymm2" }; (number 4) => { "ymm2" };
    (number $odd:tt) => { "ymm3" };
    (bytes) => { 32 };
}

/// The registers of AVX-512. Twenty-four are sums, one for each row and strip; four hold a row of the strips, and four in
/// turns hold a number of the activations, spread out.
#[rustfmt::skip]
macro_rules! avx512 {
    (sum 0 0) => { "zmm8" };  (sum 0 1) => { "zmm9" };  (sum 0 2) => { "zmm10" }; (sum 0 3) => { "zmm11" };
    (sum 1 0) => { "zmm12" }; (sum 1 1) => { "zmm13" }; (sum 1 2) => { "zmm14" }; (sum 1 3) => { "zmm15" };
    (sum 2 0) => { "zmm16" }; (sum 2 1) => { "zmm17" }; (sum 2 2) => { "zmm18" }; (sum 2 3) => { "zmm19" };
    (sum 3 0) => { "zmm20" }; (sum 3 1) => { "zmm21" }; (sum 3 2) => { "zmm22" }; (sum 3 3) => { "zmm23" };
    (sum 4 0) => { "zmm24" }; (sum 4 1) => { "zmm25" }; (sum 4 2) => { "zmm26" }; (sum 4 3) => { "zmm27" };
    (sum 5 0) => { "zmm28" }; (sum 5 1) => { "zmm29" }; (sum 5 2) => { "zmm30" }; (sum 5 3) => { "zmm31" };
    (weights $p:tt) => { concat!("zmm", $p) };
    (at 0) => { "[{b}" }; (at 1) => { "[{b} + {d}" }; (at 2) => { "[{b} + 2*{d}" }; (at 3) => { "[{b} + {e}" };
    (number 0) => { "zmm4" }; (number 4) => { "zmm4" }; (number 1) => { "zmm5" }; (number 5) => { "zmm5" };
    (number 2) => { "zmm6" }; (number 3) => { "zmm7" };
    (bytes) => { 64 };
}

/// A row's sums, from memory.
macro_rules! load {
    ($set:ident $i:tt [$($p:tt)*]) => {
        concat!($("vmovups ", $set!(sum $i $p), ", [{f} + ", $set!(bytes), "*", $p, "]\n",)* "add {f}, {g}")
    };
}

/// A row's sums, to memory.
macro_rules! store {
    ($set:ident $i:tt [$($p:tt)*]) => {
        concat!($("vmovups [{o} + ", $set!(bytes), "*", $p, "], ", $set!(sum $i $p), "\n",)* "add {o}, {q}")
    };
}

/// A row of the strips, the `u`th of this turn.
macro_rules! weights {
    ($set:ident $u:literal [$($p:tt)*]) => {
        concat!($("vmovups ", $set!(weights $p), ", ", $set!(at $p), " + 64*", $u, "]\n",)*)
    };
}

/// What a number of the activations adds to the sums of its row.
macro_rules! add {
    ($set:ident $u:literal $i:tt [$($p:tt)*]) => {
        concat!(
            "vbroadcastss ", $set!(number $i), ", ", row!($i), " + 4*", $u, "]\n",
            $("vfmadd231ps ", $set!(sum $i $p), ", ", $set!(weights $p), ", ", $set!(number $i), "\n",)*
        )
    };
}

/// One row of the strips by as many numbers of the activations.
macro_rules! step {
    ($set:ident $u:literal $strips:tt $($i:tt)*) => {
        concat!(weights!($set $u $strips), $(add!($set $u $i $strips),)*)
    };
}

/// Asks for a row of two later strips, the `u`th of this turn. All rows at once are more than a core can wait for, and would
/// hold up the products behind them. Other tiles have less need of it: their weights are asked for beforehand.
macro_rules! later {
    (avx512 $u:literal [0 1 2 3]) => {
        concat!(
            "prefetcht1 [{l} + 64*",
            $u,
            "]\nprefetcht1 [{l} + {d} + 64*",
            $u,
            "]\n"
        )
    };
    ($set:ident $u:literal $strips:tt) => {
        ""
    };
}

/// The whole tile: sums from memory, four rows of the strips in a turn, what is left one by one, sums to memory.
macro_rules! tile {
    ($set:ident $tile:ident $strips:tt [$($i:tt)*] [$($register:tt)*]) => {
        asm!(
            "lea {t}, [{a} + 2*{s}]", "add {t}, {s}", "lea {e}, [{d} + 2*{d}]",
            $(load!($set $i $strips),)*
            "cmp {n}, 4", "jb 3f",
            ".p2align 5", "2:",
            step!($set 0 $strips $($i)*), later!($set 0 $strips),
            step!($set 1 $strips $($i)*), later!($set 1 $strips),
            step!($set 2 $strips $($i)*), later!($set 2 $strips),
            step!($set 3 $strips $($i)*), later!($set 3 $strips),
            "add {a}, 16", "add {t}, 16", "add {b}, 256", "add {l}, 256",
            "sub {n}, 4", "cmp {n}, 4", "jae 2b",
            "3:", "test {n}, {n}", "jz 5f", "4:",
            step!($set 0 $strips $($i)*),
            "add {a}, 4", "add {t}, 4", "add {b}, 64", "dec {n}", "jnz 4b",
            "5:",
            $(store!($set $i $strips),)*
            a = inout(reg) $tile.a => _, s = in(reg) $tile.a_stride, t = out(reg) _,
            b = inout(reg) $tile.strips => _, d = in(reg) $tile.apart, e = out(reg) _,
            n = inout(reg) $tile.length => _, l = inout(reg) $tile.later => _,
            f = inout(reg) $tile.from => _, g = in(reg) $tile.from_stride,
            o = inout(reg) $tile.to => _, q = in(reg) $tile.to_stride,
            $(out($register) _,)*
            options(nostack)
        )
    };
}

/// As `tile!`, for as many rows as there are.
macro_rules! rows {
    ($set:ident $tile:ident $rows:ident $strips:tt $registers:tt) => {
        match $rows {
            1 => tile!($set $tile $strips [0] $registers),
            2 => tile!($set $tile $strips [0 1] $registers),
            3 => tile!($set $tile $strips [0 1 2] $registers),
            4 => tile!($set $tile $strips [0 1 2 3] $registers),
            5 => tile!($set $tile $strips [0 1 2 3 4] $registers),
            6 => tile!($set $tile $strips [0 1 2 3 4 5] $registers),
            _ => unreachable!("tiles have one to six rows"),
        }
    };
}

/// A tile of one to six `rows` by one strip.
///
/// # Safety
/// The machine has AVX2 and FMA; all that [`Tile`] says lies in memory, and where the sums go is nobody else's.
#[inline(always)]
pub unsafe fn avx2(rows: usize, tile: &Tile) {
    // SAFETY: the caller vouches for it.
    unsafe {
        rows!(avx2 tile rows [0 1] [
            "ymm0" "ymm1" "ymm2" "ymm3" "ymm4" "ymm5" "ymm6" "ymm7"
            "ymm8" "ymm9" "ymm10" "ymm11" "ymm12" "ymm13" "ymm14" "ymm15"
        ]);
    }
}

/// A tile of one to six `rows` by `P` strips: one, two or four.
///
/// # Safety
/// As for [`avx2()`], with AVX-512.
#[inline(always)]
pub unsafe fn avx512<const P: usize>(rows: usize, tile: &Tile) {
    macro_rules! strips {
        ($strips:tt) => {
            rows!(avx512 tile rows $strips [
                "zmm0" "zmm1" "zmm2" "zmm3" "zmm4" "zmm5" "zmm6" "zmm7"
                "zmm8" "zmm9" "zmm10" "zmm11" "zmm12" "zmm13" "zmm14" "zmm15"
                "zmm16" "zmm17" "zmm18" "zmm19" "zmm20" "zmm21" "zmm22" "zmm23"
                "zmm24" "zmm25" "zmm26" "zmm27" "zmm28" "zmm29" "zmm30" "zmm31"
            ])
        };
    }
    // SAFETY: the caller vouches for it.
    unsafe {
        match P {
            1 => strips!([0]),
            2 => strips!([0 1]),
            4 => strips!([0 1 2 3]),
            _ => unreachable!("tiles have one, two or four strips"),
        }
    }
}
