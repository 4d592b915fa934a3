# The harm that is done, and what takes it away; sourced by run.

# --- the broker ----------------------------------------------------------------------------------------

broker() { inside systemctl kill --kill-whom=main --signal="$1" rabbitmq-server; }
broker_killed() { broker KILL; }
broker_stopped() { broker STOP; }
broker_continues() { broker CONT; }
# Going, it serves for another second or two: the harm begins when nobody listens any more.
broker_restarts() {
  inside systemctl restart --no-block rabbitmq-server
  eventually 20 "the broker to go" nobody_listens
  at=$EPOCHREALTIME
}
nobody_listens() { ! inside bash -c 'exec 3<>/dev/tcp/127.0.0.1/5672' 2>/dev/null; }
# Stopped after its death, or its own unit would bring it back.
broker_goes_away() { broker_killed; inside systemctl stop --no-block rabbitmq-server; }
broker_comes_back() { start_broker; }
broker_comes_back_late() { sleep 45; start_broker; }

memory_alarm() { inside rabbitmqctl -q set_vm_memory_high_watermark 0.00001; }
memory_alarm_ends() { inside rabbitmqctl -q set_vm_memory_high_watermark 0.4; }
status_is_degraded() { status_matches '^degraded · broker blocks publishing'; }

# Packets to and from the address that the service talks to vanish; other clients use another.
cut_off() { firewall -A "$1"; }
mend_cut() { firewall -D "$1"; }
firewall() {
  local rule
  for rule in "-d 127.0.0.1 --dport $2" "-s 127.0.0.1 --sport $2"; do
    nsenter -t "$leader" -n iptables-legacy -w "$1" INPUT -p tcp $rule -j DROP
  done
}
plain_is_cut() { cut_off 5672; }
plain_is_mended() { mend_cut 5672; }
tls_is_cut() { cut_off 5671; }
tls_is_mended() { mend_cut 5671; }

# The queue with all that it holds: so nothing is sent meanwhile that could be in it.
queue_deleted() { inside rabbitmqctl -q delete_queue embeddings.interactive; }
queue_deleted_and_made_anew() {
  inside rabbitmqctl -q delete_queue embeddings.bulk
  inside python3 /chaos/load.py declare embeddings.bulk
}
permission_taken_away() {
  inside rabbitmqctl -q clear_permissions worker
  inside rabbitmqctl -q close_all_user_connections worker chaos
  at=$EPOCHREALTIME
}
permission_given_back() { inside rabbitmqctl -q set_permissions worker '.*' '.*' '.*'; }
connections_closed() { inside rabbitmqctl -q close_all_connections chaos; }

# --- threads -------------------------------------------------------------------------------------------

# The threads of the service, oldest first: number and name.
all_threads() {
  inside sh -c 'cd /proc/"$0"/task && for thread in *; do echo "$thread $(cat "$thread/comm")"; done' "$(property MainPID)" |
    sort -n
}
# The numbers of those whose name matches.
threads() { all_threads | awk -v name="$1" '$2 ~ name { print $1 }'; }
freeze() { inside systemd-run --quiet --unit=chaos-freeze -p Type=notify python3 /chaos/freeze.py "$@"; }
thaw() { inside systemctl stop chaos-freeze; inside systemctl reset-failed chaos-freeze; } 2>/dev/null
engines_frozen() { freeze $(threads '^engine-'); }
engine_frozen() { freeze $(threads '^engine-0'); }
tokenizers_frozen() { freeze $(threads '^tokenize-'); }
loop_frozen() { freeze $(threads '^loop$'); }
engines_slowed() { freeze --slow $(threads '^engine-'); }
# One of several stands with a job in its hands, while the others work on.
tokenizer_frozen_at_work() {
  inside systemd-run --quiet --unit=chaos-large sh -c 'for n in 1 2 3 4 5 6 7 8; do python3 /chaos/load.py large $n bulk; done'
  freeze --busy $(threads '^tokenize-0')
  at=$EPOCHREALTIME
}
# A thread for large jobs, idle, that the next large job will be given to.
thread_for_large_jobs_frozen() { thread_for_large_jobs_frozen_in bulk; }
thread_for_large_jobs_frozen_interactive() { thread_for_large_jobs_frozen_in interactive; }
thread_for_large_jobs_frozen_in() {
  inside python3 /chaos/load.py large first bulk
  freeze $(threads '^io-[1-9]')
  inside python3 /chaos/load.py large second "$1"
  at=$EPOCHREALTIME
}
this_thread() { threads "^$thread\$" | sed -n "${place}p"; }
this_thread_frozen() { freeze "$(this_thread)"; }

# --- the process ---------------------------------------------------------------------------------------

service_killed() { signal_now KILL; }
service_stopped() { signal_now STOP; }
# Twice: Rust's handler, which looks for overflowed stacks, swallows one that is not a fault of its thread.
service_segfaults() { signal_now SEGV && signal_now SEGV; }
signal_now() { inside systemctl kill --kill-whom=main --signal="$1" embeddings; }

# The system gives no more threads: a job that needs one meets a panic, not a test switch. Threads for large
# jobs are kept for 10 s after their last one.
no_more_threads() {
  sleep 12
  inside prlimit --pid "$(property MainPID)" --nproc=1:1
  at=$EPOCHREALTIME
  inside python3 /chaos/load.py large one bulk
}
# Below cgroup v2 the limit is that of the unit itself, and systemd knows who killed; below v1 it knows of no
# memory controller, and sees a SIGKILL.
kernel_kills_for_memory() {
  local of_unit pid
  of_unit=$(find $(cgroup_roots | sed "s|\$|/$machine|") -type d -name embeddings.service | head -1)
  read -r pid <"$of_unit/cgroup.procs"
  if [ -e "$of_unit/memory.max" ]; then
    echo 1M >"$of_unit/memory.max"
  else
    mkdir -p /sys/fs/cgroup/memory/$machine
    echo 4M >/sys/fs/cgroup/memory/$machine/memory.limit_in_bytes
    echo "$pid" >/sys/fs/cgroup/memory/$machine/cgroup.procs
  fi
  at=$EPOCHREALTIME
  inside python3 /chaos/load.py large one bulk
}
memory_cgroup_ends() { rmdir /sys/fs/cgroup/memory/$machine 2>/dev/null || true; }

# --- the machine around it -----------------------------------------------------------------------------

journald_and_engines_frozen() { inside systemctl kill --signal=STOP systemd-journald; at=$EPOCHREALTIME; engines_frozen; }
journald_stopped() { inside systemctl kill --signal=STOP systemd-journald; }
journald_continues() { thaw; inside systemctl kill --signal=CONT systemd-journald; }
# The journal's socket holds so many datagrams, whoever sent them; then senders wait.
journald_deaf() {
  journald_stopped
  inside python3 /chaos/fill_journal.py
}
# In this order, since systemd itself becomes slow.
engines_frozen_and_journald_deaf() { engines_frozen; at=$EPOCHREALTIME; journald_deaf; }

configuration_broken() { echo 'max_queue = "plenty"' | inside tee /etc/embeddings/conf.d/bad.toml >/dev/null; }
configuration_mended() { inside rm /etc/embeddings/conf.d/bad.toml; }
model_file() { inside dpkg -L embeddings-model-all-minilm-l6-v2 | grep '/model.safetensors$'; }
model_corrupt() { inside sh -c 'mv "$0" "$0.kept"; head -c 1M /dev/urandom >"$0"' "$(model_file)"; }
model_missing() { inside sh -c 'mv "$0" "$0.kept"' "$(model_file)"; }
model_mended() { inside sh -c 'mv "$0.kept" "$0"' "$(model_file)"; }
clock_forward() { inside sh -c 'echo +1d >/run/chaos-clock'; }
clock_backward() { inside sh -c 'echo -1d >/run/chaos-clock'; }
clock_right() { inside sh -c 'echo +0 >/run/chaos-clock'; }
