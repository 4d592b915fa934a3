//! Compiles the kernels of our own for the feature `cuda`; without it there is nothing to do.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The oldest cards that the kernels are for: Ampere's, the first that multiply bf16. The driver compiles them for newer ones.
const OLDEST: &str = "80";

fn main() {
    let source = "src/engine/gpu/cuda/attention.cu";
    for cause in ["build.rs", source] {
        println!("cargo::rerun-if-changed={cause}");
    }
    for cause in ["NVCC", "CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={cause}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = env::var_os("NVCC").map(PathBuf::from).or_else(|| {
        let home = env::var_os("CUDA_HOME")?;
        Some(PathBuf::from(home).join("bin/nvcc"))
    });
    let nvcc = nvcc.unwrap_or_else(|| "nvcc".into());
    let ptx = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("attention.ptx");
    let oldest = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| OLDEST.into());
    let done = Command::new(&nvcc)
        .args([
            "--ptx",
            "-O3",
            "-std=c++17",
            &format!("-arch=compute_{oldest}"),
            "-o",
        ])
        .args([&ptx, &PathBuf::from(source)])
        .status();
    match done {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} of {source}: {status}", nvcc.display()),
        Err(error) => panic!(
            "{} cannot be run: {error}; `. <(scripts/cuda-toolkit)` makes one ready",
            nvcc.display()
        ),
    }
}
