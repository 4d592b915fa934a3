# Cases about embeddings@NAME.service, two of them beside the service itself; sourced by run.

readonly INSTANCES="red blue"

# Each has queues and a port of its own.
configure_instance() {
  inside mkdir -p "/etc/embeddings/instances/$1"
  printf '[broker]\nprefix = "%s"\n[http]\nlisten = "127.0.0.1:%s"\n' "$1" "$2" |
    inside tee "/etc/embeddings/instances/$1/embeddings.toml" >/dev/null
}

instances_are_ready() {
  local name unit
  configure_instance red 8971
  configure_instance blue 8972
  for name in $INSTANCES; do
    unit=embeddings@$name
    job systemctl enable --now --no-block --quiet "$unit"
    eventually 60 "$unit to be ready" ready
    expect "runtime directory" "755 embeddings" "$(inside stat -c '%a %U' "/run/$unit")"
    expect "state directory" "750 embeddings" "$(inside stat -c '%a %U' "/var/lib/$unit")"
    expect "models of its own" "" "$(inside sh -c "ls /var/lib/$unit/models 2>/dev/null" || true)"
  done
  eventually 20 "the monitor to watch all three" monitor_watches 3
  expect "all instances' share beside a broker's 100" 25 "$(inside systemctl show --value -p CPUWeight system-embeddings.slice)"
  expect "the service's share" 25 "$(unit=embeddings property CPUWeight)"
}

instances_answer_their_own() {
  local out name port ask
  ask='import sys, urllib.request as web
print(web.urlopen("http://127.0.0.1:%s/health/ready" % sys.argv[1]).status)'
  for port in 8970 8971 8972; do
    expect "health on port $port" 200 "$(job -p User=nobody python3 -c "$ask" $port)"
  done
  for name in $INSTANCES; do
    out=$(printf 'hello world\nsecond text\n' | job -p User=nobody embeddings submit --quiet --instance "$name")
    expect "lines of submit" 2 "$(grep -c embedding <<<"$out")"
    expect "answered by $name" 1 "$(answered_by "$name")"
  done
  expect "answered by the service itself" 0 "$(answered_by "")"
}

# Bulk jobs that an instance says it has answered.
answered_by() {
  job embeddings status --json ${1:+--instance "$1"} |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["jobs"].get("bulk", {}).get("answered", 0))'
}

instances_tell_how_they_are() {
  local name unit out code pids=""
  for name in $INSTANCES; do
    unit=embeddings@$name
    out=$(job -p User=nobody embeddings status --instance "$name")
    expect_match "status" "^● $unit is running · all-MiniLM-L6-v2 on cpu · " "$out"
    expect_match "its process" "pid $(property MainPID) " "$out"
    pids+="$(property MainPID) "
    expect_match "embeddings config" "broker.prefix +\"$name\" +/etc/embeddings/instances/$name/embeddings.toml" \
      "$(job embeddings config --instance "$name")"
    expect_match "embeddings check" "everything is well|no error" "$(job embeddings check --instance "$name")"
  done
  expect "different processes" 3 "$(printf '%s\n' $pids "$(unit=embeddings property MainPID)" | sort -u | wc -l)"
  unit=embeddings@blue
  job systemctl stop "$unit"
  code=0
  out=$(job -p User=nobody embeddings status --instance blue) || code=$?
  expect_match "status after the stop" "^○ $unit is stopped" "$out"
  expect_match "what to do" "systemctl start $unit\`" "$out"
  expect "exit code of status after the stop" 3 "$code"
  expect_match "the other" '^● embeddings@red is running' "$(job embeddings status --instance red)"
  job systemctl start "$unit"
  eventually 60 "$unit to be ready" ready
}

instance_needs_a_configuration() {
  local unit=embeddings@nobody code=0
  job systemctl start "$unit" 2>/dev/null || code=$?
  expect "exit code" 78 "$(property ExecMainStatus)"
  one_record_of "$(property InvocationID)" config_error
  expect_match "journal" '/etc/embeddings/instances/nobody/embeddings.toml: failed to read' "$(journal)"
  expect_match "status" "check --instance nobody" "$(job embeddings status --instance nobody || true)"
  inside systemctl reset-failed "$unit"
}

death_of_an_instance_is_its_own() {
  local unit=embeddings@red invocation others_before
  others_before=$(lives_of_the_others)
  invocation=$(property InvocationID)
  signal_service KILL
  eventually 10 "its end" not_ready
  eventually 60 "$unit to be ready" ready
  one_record_of "$invocation" signal
  expect_match "status" "deaths, the newest first .* signal " "$(job embeddings status --instance red | tr '\n' ' ')"
  expect "the others" "$others_before" "$(lives_of_the_others)"
  expect "records of the others" "0 0" "$(deaths_of embeddings) $(deaths_of embeddings@blue)"
}

lives_of_the_others() { for unit in embeddings embeddings@blue; do property InvocationID; done; }
deaths_of() { inside journalctl -u "$1.service" --no-pager -o cat --output-fields=KILL_REASON KILL_REASON=signal | grep -c . || true; }

# Held to the service's limits it would be ended after 45 s, to its own after 6.
monitor_knows_the_limits_of_an_instance() {
  local unit=embeddings@red before others_before
  others_before=$(lives_of_the_others)
  drop_in no-watchdog <<<$'[Service]\nWatchdogSec=0'
  inside mkdir -p /etc/embeddings/instances/red/conf.d
  printf 'heartbeat_interval_ms = 1000\nheartbeat_timeout_ms = 6000\nliveness_max_stall_ms = 5000\n' |
    inside tee /etc/embeddings/instances/red/conf.d/short.toml >/dev/null
  restart
  eventually 60 "$unit to be ready" ready
  eventually 10 "the monitor to watch all three" monitor_watches 3
  before=$(property MainPID)
  signal_service STOP
  eventually 25 "another process" different_process "$before"
  eventually 60 "$unit to be ready" ready
  expect_match "the monitor's journal" "worker $before is ended: no heartbeat for 6" \
    "$(inside journalctl -u embeddings-monitor --no-pager)"
  expect_match "its record" heartbeat_timeout "$(job embeddings status --instance red)"
  expect "the others" "$others_before" "$(lives_of_the_others)"
  inside rm -r /etc/embeddings/instances/red/conf.d /etc/systemd/system/embeddings@red.service.d
  inside systemctl daemon-reload
  restart
  eventually 60 "$unit to be ready" ready
}

storm_of_an_instance_is_its_own() {
  local unit=embeddings@red death others_before
  others_before=$(lives_of_the_others)
  drop_in short-pause <<<$'[Service]\nRestartSec=500ms'
  inside mkdir -p /etc/systemd/system/embeddings-alarm@.service.d
  echo $'[Service]\nEnvironment=EMBEDDINGS_ALARM_COOLDOWN_S=8' |
    inside tee /etc/systemd/system/embeddings-alarm@.service.d/short.conf >/dev/null
  inside systemctl daemon-reload
  restart
  for death in 1 2 3 4 5; do
    eventually 60 "life $death" ready
    signal_service KILL
    eventually 10 "death $death" not_ready
  done
  eventually 10 "the unit to give up" active_state_is failed
  eventually 10 "the alarm" one_alarm_more 0
  expect_match "the alarm" "$unit.service has failed, systemd has given up: .*signal" \
    "$(journal -o cat -p crit MESSAGE_ID="$MESSAGE_ID_ALARM")"
  expect "alarms of the others" "0 0" "$(unit=embeddings count_alarms) $(unit=embeddings@blue count_alarms)"
  expect "the others" "$others_before" "$(lives_of_the_others)"
  eventually 60 "the instance to be ready after the cool-down" ready
  inside rm -r "/etc/systemd/system/$unit.service.d" /etc/systemd/system/embeddings-alarm@.service.d
  inside systemctl daemon-reload
}

instance_is_locked_in() {
  inside systemd-analyze security --no-pager embeddings@red.service | tail -1
  inside systemd-analyze security --no-pager --threshold=20 embeddings@red.service >/dev/null
}

upgrade_restarts_instances() {
  local unit=embeddings@red before
  job systemctl disable --quiet --now embeddings@blue
  before=$(property MainPID)
  apt install "/next/next.deb"
  eventually 60 "another process" different_process "$before"
  eventually 60 "$unit to be ready" ready
  expect "the disabled one" inactive "$(unit=embeddings@blue property ActiveState)"
}

instances_come_back_after_removal() {
  local unit=embeddings@red
  apt remove "$package"
  expect "state" inactive "$(property ActiveState)"
  expect "configuration" present "$(inside sh -c '[ -e /etc/embeddings/instances/red/embeddings.toml ] && echo present')"
  install_both --allow-downgrades
  eventually 60 "$unit to be ready" ready
}
