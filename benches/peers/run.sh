#!/usr/bin/env bash
# Measures the engine beside OpenVINO and ONNX Runtime: run.sh BINARY MODEL_DIR [options of peers.py]
# Sets both up in PEERS_HOME (default .cache/peers), once; that takes several GB for the export's torch.
# LESSER=avx2 or avx512 in the environment takes AVX-512 and AMX, or AMX, away from all of them: lesser.c.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${PEERS_HOME:-$here/../../.cache/peers}
binary=$(realpath "$1") model=$(realpath "$2")
shift 2
mkdir -p "$home"
[ -x "$home/v/bin/python" ] || python3 -m venv "$home/v"
if [ ! -e "$home/model.onnx" ]; then
  "$home/v/bin/pip" install -q -r "$here/requirements.txt"
  "$home/v/bin/python" "$here/export.py" "$model" "$home/model.tmp"
  mv "$home/model.tmp" "$home/model.onnx"
fi
if [ ! -e "$home/quantised" ]; then
  "$home/v/bin/python" "$here/quantise.py" "$model" "$home/model.onnx" "$home/quantised.tmp"
  mv "$home/quantised.tmp" "$home/quantised"
fi
if [ -n "${LESSER-}" ]; then
  cc -O2 -shared -fPIC -o "$home/lesser.so" "$here/lesser.c"
  export LD_PRELOAD=$home/lesser.so
fi
exec "$home/v/bin/python" "$here/peers.py" --binary "$binary" --model "$model" --onnx "$home/model.onnx" \
  --quantised "$home/quantised" "$@"
