#!/usr/bin/env bash
# On a machine with an NVIDIA card: parity of every family on the card, then throughput side by side with
# sentence-transformers in f16 on the same card, each in turns. Needs CUDA 13's libraries, and a Python with torch (CUDA) and
# sentence-transformers in $PYTHON. Not yet run: no card was to be had.
#   benches/gpu/run.sh [MODEL_DIR]        # default: all-MiniLM-L6-v2, fetched by scripts/get-model
source "$(dirname "$0")/../../scripts/lib.sh"

PYTHON=${PYTHON:-python3}
ROUNDS=${ROUNDS:-5}
model=${1:-$("$ROOT/scripts/get-model")}
settings=$("$ROOT/scripts/cuda-toolkit")
eval "$settings"
cd "$ROOT"
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,memory.total --format=csv >&2 || die "no card"

say "parity: every golden model on the card, in f32, f16 and bf16"
cargo test --release --locked --features cuda --test vectors -- --ignored a_card_computes

say "throughput, $ROUNDS rounds in turns"
cargo build --release --locked --features cuda --example card
"$PYTHON" benches/gpu/side_by_side.py "$model" target/release/examples/card "$ROUNDS"
