//! CUDA's libraries, opened when they are first needed.
//!
//! Candle has cudarc link them in the ordinary way, and a program linked so does not start where one is missing: the
//! loader ends it before it can say a word. So each function that is called of them is defined here, as a jump to an address
//! that [`load`] fills in. Then no library is named in the program; it starts everywhere, says what is missing, and can
//! compute on the CPU instead. `docs/design/0016` has the reasons.

use super::symbols::LIBRARIES;
use libloading::os::unix::{Library as Opened, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A library and the functions that are called of it.
pub struct Library {
    /// Its name for the loader.
    pub soname: &'static str,
    /// What brings it.
    pub package: &'static str,
    /// Whether nothing can be computed without it.
    pub needed: bool,
    /// Names, and where their addresses go.
    pub functions: &'static [(&'static str, &'static AtomicPtr<c_void>)],
}

/// A library that is needed and cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{soname} cannot be opened (it comes with {package}): {why}")]
pub struct Missing {
    soname: &'static str,
    package: &'static str,
    why: String,
}

/// Opens the libraries and fills in the addresses of their functions. To be called before anything of CUDA is.
///
/// # Errors
/// A library is missing; the next call tries again.
pub fn load() -> Result<(), Missing> {
    static LOADED: OnceLock<()> = OnceLock::new();
    if LOADED.get().is_none() {
        LIBRARIES.iter().try_for_each(open)?;
        let _ = LOADED.set(());
    }
    Ok(())
}

fn open(library: &Library) -> Result<(), Missing> {
    // SAFETY: opening runs the library's initialisers, which are NVIDIA's and are run by every program that uses it.
    let opened = unsafe { Opened::open(Some(library.soname), RTLD_NOW | RTLD_GLOBAL) };
    let opened = match opened {
        Ok(opened) => opened,
        Err(_) if !library.needed => return Ok(()),
        Err(error) => {
            // What the loader said is the cause of what the library says.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            return Err(Missing {
                soname: library.soname,
                package: library.package,
                why: cause.unwrap_or_else(|| error.to_string()),
            });
        }
    };
    for (name, place) in library.functions {
        // SAFETY: the address is not called here; who calls it does so by the declaration of the same name.
        let found = unsafe { opened.get::<*mut c_void>(name.as_bytes()) };
        // One that an older library has not stays a call that ends the process by name.
        if let Ok(address) = found {
            place.store(address.as_raw_ptr(), Ordering::Release);
        }
    }
    // Open for good: its functions may be called until the process ends.
    std::mem::forget(opened);
    Ok(())
}

/// Where a jump leads whose function was not found.
pub(super) extern "C" fn absent() -> ! {
    // No panic: this was called as if it were C, and nothing can be unwound through that.
    tell!("a function was called that the installed CUDA libraries do not have; see docs/cuda.md");
    std::process::abort();
}

/// Defines functions as jumps to addresses in memory, and the tables by which [`load`] fills these in.
macro_rules! libraries {
    ($($table:ident = $soname:literal from $package:literal, needed: $needed:literal, [$($name:ident)*];)*) => {
        $($(
            #[cfg(target_arch = "x86_64")]
            std::arch::global_asm!(
                concat!(".pushsection .data.embeddings_slot_", stringify!($name), ",\"aw\""),
                ".p2align 3",
                concat!(".globl embeddings_slot_", stringify!($name)),
                concat!(".hidden embeddings_slot_", stringify!($name)),
                concat!("embeddings_slot_", stringify!($name), ":"),
                ".quad {absent}",
                ".popsection",
                concat!(".pushsection .text.", stringify!($name), ",\"ax\""),
                ".p2align 4",
                concat!(".globl ", stringify!($name)),
                concat!(".hidden ", stringify!($name)),
                concat!(".type ", stringify!($name), ",@function"),
                concat!(stringify!($name), ":"),
                concat!("jmp qword ptr [rip + embeddings_slot_", stringify!($name), "]"),
                ".popsection",
                absent = sym $crate::engine::gpu::cuda::libraries::absent,
            );
            #[cfg(target_arch = "aarch64")]
            std::arch::global_asm!(
                concat!(".pushsection .data.embeddings_slot_", stringify!($name), ",\"aw\""),
                ".p2align 3",
                concat!(".globl embeddings_slot_", stringify!($name)),
                concat!(".hidden embeddings_slot_", stringify!($name)),
                concat!("embeddings_slot_", stringify!($name), ":"),
                ".quad {absent}",
                ".popsection",
                concat!(".pushsection .text.", stringify!($name), ",\"ax\""),
                ".p2align 4",
                concat!(".globl ", stringify!($name)),
                concat!(".hidden ", stringify!($name)),
                concat!(".type ", stringify!($name), ",%function"),
                concat!(stringify!($name), ":"),
                concat!("adrp x16, embeddings_slot_", stringify!($name)),
                concat!("ldr x16, [x16, :lo12:embeddings_slot_", stringify!($name), "]"),
                "br x16",
                ".popsection",
                absent = sym $crate::engine::gpu::cuda::libraries::absent,
            );
        )*)*

        /// Where the addresses are kept.
        mod slots {
            $(unsafe extern "C" {
                $(
                    #[link_name = concat!("embeddings_slot_", stringify!($name))]
                    pub safe static $name: std::sync::atomic::AtomicPtr<std::ffi::c_void>;
                )*
            })*
        }

        /// Every library of which a function is called.
        pub static LIBRARIES: &[$crate::engine::gpu::cuda::libraries::Library] = &[$(
            $crate::engine::gpu::cuda::libraries::Library {
                soname: $soname,
                package: $package,
                needed: $needed,
                functions: {
                    static $table: &[(&str, &std::sync::atomic::AtomicPtr<std::ffi::c_void>)] =
                        &[$((concat!(stringify!($name), "\0"), &slots::$name)),*];
                    $table
                },
            },
        )*];
    };
}
pub(super) use libraries;
