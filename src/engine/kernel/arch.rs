//! Which vectors this machine computes with.

use pulp::{Simd, WithSimd};

/// The vector instructions for everything in 32 bits: [`pulp::Arch`], and the vectors of x86-64-v2, which that leaves out.
/// A virtual machine whose processor model hides AVX2 has these.
#[derive(Debug, Clone, Copy)]
pub enum Arch {
    /// AVX-512, AVX2 with FMA, NEON, or single numbers.
    Usual(pulp::Arch),
    /// SSE 4.2: registers of four numbers.
    #[cfg(target_arch = "x86_64")]
    V2(pulp::x86::V2),
}

impl Arch {
    /// The best that this machine has.
    pub fn new() -> Arch {
        match pulp::Arch::new() {
            pulp::Arch::Scalar => Arch::least(),
            usual => Arch::Usual(usual),
        }
    }

    /// The best that every machine has on which the program runs.
    pub fn least() -> Arch {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V2::try_new() {
            return Arch::V2(simd);
        }
        Arch::Usual(pulp::Arch::Scalar)
    }

    /// Runs an operation, compiled for these instructions.
    #[inline(always)]
    pub fn dispatch<Op: WithSimd>(self, op: Op) -> Op::Output {
        match self {
            Arch::Usual(arch) => arch.dispatch(op),
            #[cfg(target_arch = "x86_64")]
            Arch::V2(simd) => Simd::vectorize(simd, op),
        }
    }
}

/// `a·b + c`: rounded once where there is an instruction for it. x86-64 has it from AVX2 on; below that rounding once is a
/// call of the C library for each number, a hundred times as long, and it is rounded twice.
#[inline(always)]
pub fn mul_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    if cfg!(target_arch = "x86_64") && S::F32_LANES < 8 {
        simd.add_f32s(simd.mul_f32s(a, b), c)
    } else {
        simd.mul_add_f32s(a, b, c)
    }
}
