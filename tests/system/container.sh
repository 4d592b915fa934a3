# Boots a Debian root folder as a container with its own systemd, and runs commands in it; sourced.
#
# Works without systemd on the host, and below cgroup v1, hybrid and v2. The root is a memory overlay over
# the read-only base: nothing needs to be cleaned up but the processes and the cgroup.

# Why containers cannot run here, or nothing if they can.
why_no_containers() {
  [ "$(id -u)" = 0 ] || { echo "not root"; return; }
  unshare --mount --pid --fork mount --make-rprivate / 2>/dev/null || { echo "this environment forbids new mount namespaces"; return; }
  [ -n "$(cgroup_roots)" ] || echo "no cgroup hierarchy that can be written"
}

# The hierarchies that a systemd inside needs: the only one (v2), or those of a hybrid host.
cgroup_roots() {
  local root
  if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    [ ! -w /sys/fs/cgroup ] || echo /sys/fs/cgroup
  else
    for root in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
      [ ! -d $root ] || echo $root
    done
  fi
}

# boot BASE [nspawn option…]: sets `leader`, the process id of the container's systemd.
boot() {
  local base=$1 root
  shift
  machine=embeddings-test-$$
  # A cgroup of its own, or containers side by side would take each other's units for their own.
  for root in $(cgroup_roots); do mkdir -p "$root/$machine"; done
  (
    for root in $(cgroup_roots); do echo $BASHPID >"$root/$machine/cgroup.procs"; done
    export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    exec setsid systemd-nspawn --boot --directory="$base" --volatile=overlay --register=no --keep-unit \
      --private-network --machine=$machine --console=pipe "$@" >"$logs/console.log" 2>&1 </dev/null
  ) &
  nspawn=$!
  leader=
  eventually 60 "the container to boot" booted
}

booted() {
  leader=$(pgrep -P "$nspawn" | head -1) && [ -n "$leader" ] &&
    inside systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'
}

# Powers the container off and removes what it left on the host.
halt() {
  local root deadline=$((SECONDS + 20))
  [ -n "${nspawn:-}" ] || return 0
  kill -s RTMIN+3 "$leader" 2>/dev/null || true
  while kill -0 "$nspawn" 2>/dev/null; do
    [ $SECONDS -lt $deadline ] || kill -KILL "$leader" "$nspawn" 2>/dev/null || true
    sleep 0.1
  done
  wait "$nspawn" 2>/dev/null || true
  nspawn=
  for root in $(cgroup_roots); do
    find "$root/$machine" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
}

# Looks into the container, from a process outside of its cgroups.
inside() {
  nsenter -t "$leader" -m -u -i -n -p -C -- \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 SYSTEMD_PAGER=cat DEBIAN_FRONTEND=noninteractive "$@"
}

# Runs a command as a unit of the container's own systemd and passes its exit code on.
job() { inside systemd-run --quiet --pipe --wait --setenv=DEBIAN_FRONTEND=noninteractive "$@"; }

# The unit that is spoken of, without its ending; a case about an instance has a local one. So are its folders called.
unit=embeddings

# A property of the service, as `systemctl show` knows it.
property() { inside systemctl show --value -p "$1" "$unit.service"; }

journal() { inside journalctl -u "$unit.service" --no-pager -o short-precise "$@"; }
