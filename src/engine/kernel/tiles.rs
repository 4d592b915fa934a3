//! The tile registers of AMX: whether this process may use them, and the products of blocks that stay in them.
//!
//! Rust has no stable words for them, so they are named in assembly. Eight registers hold 16 rows of 64 bytes
//! each: 0 to 3 are the sums (two by two), 4 and 5 rows of activations, 6 and 7 the panel's columns.
//!
//! Nothing else in the program touches these registers, so what one block of assembly leaves in them the next
//! one finds: the compiler knows no instruction that would use them. The kernel saves them with the thread.

use std::arch::asm;
use std::sync::OnceLock;

/// Rows that one tile of activations holds, and columns that one tile of sums holds.
pub const TILE: usize = 16;

/// Whether products of bf16 and of bytes can be had. The first call asks the system for the registers, which
/// is granted to the whole process for good, or refused.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| in_hardware() && permitted())
}

/// Leaf 7 names the instructions, XCR0 says that the system saves the registers.
fn in_hardware() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const OSXSAVE: u32 = 1 << 27;
    /// Configuration and data of the tiles.
    const XCR0: u32 = 3 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let all = BF16 | TILES | INT8;
    if __cpuid_count(7, 0).edx & all != all {
        return false;
    }
    let low: u32;
    // SAFETY: OSXSAVE says that the instruction exists; it reads a register and changes nothing else.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack)) };
    low & XCR0 == XCR0
}

/// Asks Linux for the tiles' data (Documentation/arch/x86/xstate.rst). An old kernel or a filter refuses.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        const SYS_ARCH_PRCTL: isize = 158;
        let answer: isize;
        // SAFETY: a system call with two numbers; it reads and writes no memory of ours, and it overwrites the
        // two registers that are named.
        unsafe {
            asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA, lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        answer == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The shape of all eight tiles: 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPE: Shape = Shape {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The tiles of this thread, shaped. Letting go of it marks them as unused, so that the system need not save
/// them.
pub struct Tiles(std::marker::PhantomData<*const ()>);

impl Tiles {
    /// Shapes the tiles of the calling thread, or nothing where there are none.
    pub fn begin() -> Option<Tiles> {
        if !available() {
            return None;
        }
        // SAFETY: the instruction exists and the system granted it; it reads the 64 bytes of SHAPE.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(readonly, nostack)) };
        Some(Tiles(std::marker::PhantomData))
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a `Tiles` exists only where the instruction does.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// Sets all sums to zero.
#[inline(always)]
pub fn zero(_: &Tiles) {
    // SAFETY: a `Tiles` exists only where the instruction does.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Loads sums: 32 rows by 32 columns of 32 bits, one row after another `stride` bytes apart.
///
/// # Safety
/// `sums` points to so many rows of 128 bytes; 16 rows are enough where `TALL` is false.
#[inline(always)]
pub unsafe fn load<const TALL: bool>(_: &Tiles, sums: *const u8, stride: usize) {
    // SAFETY: the caller vouches for the memory, and `Tiles` for the instruction.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]",
            c = in(reg) sums, s = in(reg) stride, options(readonly, nostack, preserves_flags)
        );
        if TALL {
            asm!(
                "tileloadd tmm2, [{c} + {s}]", "tileloadd tmm3, [{c} + {s} + 64]",
                c = in(reg) sums.add(TILE * stride), s = in(reg) stride, options(readonly, nostack, preserves_flags)
            );
        }
    }
}

/// Stores sums as [`load`] loads them.
///
/// # Safety
/// As for [`load`], and the memory may be written.
#[inline(always)]
pub unsafe fn store<const TALL: bool>(_: &Tiles, sums: *mut u8, stride: usize) {
    // SAFETY: the caller vouches for the memory, and `Tiles` for the instruction.
    unsafe {
        asm!(
            "tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 64], tmm1",
            c = in(reg) sums, s = in(reg) stride, options(nostack, preserves_flags)
        );
        if TALL {
            asm!(
                "tilestored [{c} + {s}], tmm2", "tilestored [{c} + {s} + 64], tmm3",
                c = in(reg) sums.add(TILE * stride), s = in(reg) stride, options(nostack, preserves_flags)
            );
        }
    }
}

/// Half a step of a panel, which is a kilobyte, to be brought into the second-level cache; from where register `$at` points to on.
macro_rules! ask {
    ($at:literal, $first:literal) => {
        concat!(
            ".irp line, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960\n",
            "prefetcht1 [",
            $at,
            " + \\line + ",
            $first,
            "]\n.endr"
        )
    };
}

/// Nothing, in the place of `ask!`.
macro_rules! pass {
    ($at:literal, $first:literal) => {
        ""
    };
}

/// Adds a product to the sums: 32 rows (16 where `TALL` is false) of `steps` times 64 bytes, by a panel. The panel is loaded with
/// the hint (`tileloaddt1`) that it need not stay in the first-level cache, where the rows are to stay. With `AHEAD`, as much is
/// brought into the second-level cache from `later` on, some of it between each two loads: asked for all at once, it would hold
/// up the loads behind it.
///
/// # Safety
/// `a` points to so many rows, `a_stride` bytes apart; `panel` to `16 × steps` rows of a panel, 128 bytes each, and so does
/// `later` with `AHEAD`.
#[inline(always)]
pub unsafe fn add<const TALL: bool, const QUADS: bool, const AHEAD: bool>(
    _: &Tiles,
    a: *const u8,
    a_stride: usize,
    panel: *const u8,
    steps: usize,
    later: *const u8,
) {
    if steps == 0 {
        return;
    }
    macro_rules! short {
        ($dot:literal, $ask:ident) => {
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {s}]",
                "tileloaddt1 tmm6, [{b} + {t}]",
                $ask!("{p}", "0"),
                "tileloaddt1 tmm7, [{b} + {t} + 64]",
                concat!($dot, " tmm0, tmm4, tmm6"),
                $ask!("{p}", "1024"),
                concat!($dot, " tmm1, tmm4, tmm7"),
                "add {a}, 64", "add {b}, 2048", "add {p}, 2048", "dec {n}", "jnz 2b",
                a = inout(reg) a => _, s = in(reg) a_stride, b = inout(reg) panel => _, t = in(reg) 128usize,
                p = inout(reg) later => _, n = inout(reg) steps => _, options(readonly, nostack)
            )
        };
    }
    macro_rules! tall {
        ($dot:literal, $ask:ident) => {
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {s}]",
                "tileloaddt1 tmm6, [{b} + {t}]",
                $ask!("{p}", "0"),
                "tileloaddt1 tmm7, [{b} + {t} + 64]",
                concat!($dot, " tmm0, tmm4, tmm6"),
                "tileloadd tmm5, [{d} + {s}]",
                concat!($dot, " tmm1, tmm4, tmm7"),
                $ask!("{p}", "1024"),
                concat!($dot, " tmm2, tmm5, tmm6"),
                concat!($dot, " tmm3, tmm5, tmm7"),
                "add {a}, 64", "add {d}, 64", "add {b}, 2048", "add {p}, 2048", "dec {n}", "jnz 2b",
                a = inout(reg) a => _, d = inout(reg) a.add(TILE * a_stride) => _, s = in(reg) a_stride,
                b = inout(reg) panel => _, t = in(reg) 128usize, p = inout(reg) later => _,
                n = inout(reg) steps => _, options(readonly, nostack)
            )
        };
    }
    // SAFETY: the caller vouches for the memory, and `Tiles` for the instructions.
    unsafe {
        match (TALL, QUADS, AHEAD) {
            (false, false, false) => short!("tdpbf16ps", pass),
            (false, false, true) => short!("tdpbf16ps", ask),
            (false, true, false) => short!("tdpbusd", pass),
            (false, true, true) => short!("tdpbusd", ask),
            (true, false, false) => tall!("tdpbf16ps", pass),
            (true, false, true) => tall!("tdpbf16ps", ask),
            (true, true, false) => tall!("tdpbusd", pass),
            (true, true, true) => tall!("tdpbusd", ask),
        }
    }
}

/// As [`add`], for numbers that are sums of two of bf16, the leading one in the first plane: the products of lesser and leading
/// ones, leading and leading, leading and lesser, so that each tile of weights is loaded once.
///
/// # Safety
/// As for [`add`], for both planes of each.
#[inline(always)]
pub unsafe fn add_split<const TALL: bool, const AHEAD: bool>(
    _: &Tiles,
    [a, lesser]: [*const u8; 2],
    a_stride: usize,
    panel: [*const u8; 2],
    steps: usize,
    later: [*const u8; 2],
) {
    if steps == 0 {
        return;
    }
    macro_rules! short {
        ($ask:ident) => {
            asm!(
                "2:",
                "tileloadd tmm5, [{l} + {s}]",
                "tileloaddt1 tmm6, [{b} + {t}]",
                $ask!("{p}", "0"),
                "tileloaddt1 tmm7, [{b} + {t} + 64]",
                "tdpbf16ps tmm0, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm5, tmm7",
                $ask!("{p}", "1024"),
                "tileloadd tmm4, [{a} + {s}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                $ask!("{q}", "0"),
                "tileloaddt1 tmm2, [{c} + {t}]",
                "tileloaddt1 tmm3, [{c} + {t} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm2",
                $ask!("{q}", "1024"),
                "tdpbf16ps tmm1, tmm4, tmm3",
                "add {a}, 64", "add {l}, 64", "add {b}, 2048", "add {c}, 2048", "add {p}, 2048", "add {q}, 2048",
                "dec {n}", "jnz 2b",
                a = inout(reg) a => _, l = inout(reg) lesser => _, s = in(reg) a_stride,
                b = inout(reg) panel[0] => _, c = inout(reg) panel[1] => _, t = in(reg) 128usize,
                p = inout(reg) later[0] => _, q = inout(reg) later[1] => _, n = inout(reg) steps => _,
                options(readonly, nostack)
            )
        };
    }
    macro_rules! tall {
        ($ask:ident) => {
            asm!(
                "2:",
                "tileloadd tmm4, [{l} + {s}]",
                "tileloaddt1 tmm6, [{b} + {t}]",
                $ask!("{p}", "0"),
                "tileloaddt1 tmm7, [{b} + {t} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{m} + {s}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                $ask!("{p}", "1024"),
                "tileloadd tmm4, [{a} + {s}]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{d} + {s}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                $ask!("{q}", "0"),
                "tileloaddt1 tmm6, [{c} + {t}]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloaddt1 tmm7, [{c} + {t} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                $ask!("{q}", "1024"),
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 64", "add {d}, 64", "add {l}, 64", "add {m}, 64", "add {b}, 2048", "add {c}, 2048",
                "add {p}, 2048", "add {q}, 2048", "dec {n}", "jnz 2b",
                a = inout(reg) a => _, d = inout(reg) a.add(TILE * a_stride) => _,
                l = inout(reg) lesser => _, m = inout(reg) lesser.add(TILE * a_stride) => _, s = in(reg) a_stride,
                b = inout(reg) panel[0] => _, c = inout(reg) panel[1] => _, t = in(reg) 128usize,
                p = inout(reg) later[0] => _, q = inout(reg) later[1] => _, n = inout(reg) steps => _,
                options(readonly, nostack)
            )
        };
    }
    // SAFETY: the caller vouches for the memory, and `Tiles` for the instructions.
    unsafe {
        match (TALL, AHEAD) {
            (false, false) => short!(pass),
            (false, true) => short!(ask),
            (true, false) => tall!(pass),
            (true, true) => tall!(ask),
        }
    }
}
