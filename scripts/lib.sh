# Helpers of the scripts in this folder; sourced, not run.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=$ROOT/.cache
BINARY=$ROOT/target/release/embeddings
readonly ROOT CACHE BINARY

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a command as root: directly, or through sudo, which is said aloud.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; return; fi
  command -v sudo >/dev/null || die "this needs root, and sudo is not there: $*"
  note "as root: $*"
  sudo "$@"
}

# Installs the Debian packages that are missing, by name, and says which.
need_packages() {
  local missing=() package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  say "installing Debian packages: ${missing[*]}"
  as_root apt-get update -qq >&2 || note "apt-get update failed for some source; trying all the same"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2
}

# Builds the service. Everything shares this one profile and folder, so dependencies compile once.
build() {
  command -v cargo >/dev/null || die "cargo is missing: install Rust from https://rustup.rs"
  command -v cc >/dev/null || need_packages build-essential
  (cd "$ROOT" && cargo build --release --locked)
}

# Whether dist/ holds packages that are younger than all they are made of.
packages_are_up_to_date() {
  local built=("$ROOT"/dist/embeddings_*.changes)
  [ -e "${built[0]}" ] && cd "$ROOT" &&
    [ -z "$(find src vendor Cargo.toml Cargo.lock debian systemd packaging -type f -newer "${built[0]}" -print -quit)" ]
}

# container_base [PACKAGE…]: makes ready what boots dist/'s packages in a Debian, and prints the path of its root.
container_base() {
  # In a $(…) no failure ends the script by itself.
  need_packages systemd-container debootstrap debhelper procps "$@" &&
    { packages_are_up_to_date || "$ROOT/scripts/deb" >&2; } &&
    "$ROOT/scripts/system-base" "${DEBIAN:-bookworm}"
}

# wait_for SECONDS WHAT COMMAND…: polls until the command succeeds; its deadline is an error.
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || { printf 'error: gave up waiting for %s\n' "$what" >&2; return 1; }
    sleep 0.2
  done
}
