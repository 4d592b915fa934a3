# Injects one fault and holds what follows against what was promised; sourced by run.
#
# A job done twice is no failure: an answer may be out when the process dies before its acknowledgement. A job
# without an answer is one.
#
#   fault MUST TITLE REASON EXIT BOUND_MS INJECT HEAL
#
# MUST    dies    within the bound, with this exit and exactly one record with this reason; then comes back
#         lives   for so long, in the same process and without a record
#         either  dies as above, or else answers all jobs while the fault lasts
# REASON, EXIT   may be alternatives: `a|b`
# INJECT  does the harm, HEAL takes it away: after the death, or at the end of the time. Neither touches the service.
#
# Settings of one fault stand before it: RATE=0 (idle), PETS=may (systemd may be petted until the bound, because
# part of the service works on), HELD='check' (must hold while the fault lasts).

readonly RATE_PER_S=${RATE_PER_S:-4}
# A bound is about the decision. Behind it come the 0.3 s that a dying process stays for journald's sake, and
# what this machine needs to notice.
# The gate of `make test` runs on machines that may be busy with other things; what it measures is written nowhere.
[ "${extent:-full}" = short ] && SLACK_MS=4000 || SLACK_MS=700
readonly SLACK_MS
readonly READY_AGAIN_S=60
readonly ANSWERED_S=60
# What was under way when the harm was done may still come round, and pet.
readonly LAST_PET_S=1

rows=() passed=0 failed=0

fault() {
  local must=$1 title=$2 reason=$3 exit=$4 bound_ms=$5 inject=$6 heal=$7
  [ -z "${ONLY:-}" ] || [[ $title =~ $ONLY ]] || return 0
  # A gate on a machine that does other things as well asks once more, and says that it did.
  local another=0
  [ "${extent:-full}" != short ] || another=1
  while :; do
    local wrong=() since= before= at= ended= witness= count= jobs=– lost=– twice=–
    local shown_after=– shown_exit=none shown_reason=none shown_ready=–
    observe >"$logs/fault.log" 2>&1 || true
    [ ${#wrong[@]} != 0 ] && [ $another -gt 0 ] || break
    another=$((another - 1))
    printf 'again %s: %s\n' "$title" "$(printf '%s; ' "${wrong[@]}")"
    explain
    mend || true
  done
  conclude || true
}

observe() {
  eventually 60 "the service to be ready before the fault" ready || { wrong+=("was not ready before"); return; }
  [ "${RATE:-}" = 0 ] || start_load
  since=$EPOCHREALTIME
  before=$(property MainPID)
  rm -f "$logs/witness"
  inside python3 /chaos/witness.py death "$before" $(((2 * bound_ms + 15000) / 1000)) >"$logs/witness" &
  witness=$!
  eventually 10 "the witness" grep -qs watching "$logs/witness"

  at=$EPOCHREALTIME
  $inject || wrong+=("could not be injected")
  if [ "$must" = dies ]; then
    wait $witness
  else
    sleep_until "$at" $((bound_ms + SLACK_MS))
    [ -z "${HELD:-}" ] || $HELD || wrong+=("$HELD did not hold")
  fi

  # What is under way now is answered within another bound, or else the death comes.
  if [ "$must" = either ]; then
    inside systemctl stop chaos-load
    inside timeout 60 python3 /chaos/load.py settled $((bound_ms / 1000 + 1)) || wait $witness
  fi

  if [ "$(seen_by_witness died)" = true ] || [ "$(property MainPID)" != "$before" ]; then
    wait $witness
    died
  else
    lived
  fi
  count_jobs
}

died() {
  [ "$must" != lives ] || wrong+=("died")
  ended=$(seen_by_witness at)
  if [ -z "$ended" ]; then
    wrong+=("did not die")
    $heal
    return
  fi
  shown_after=$(seconds "$ended - $at")
  shown_exit=$(seen_by_witness exit)
  at_most "died" "$(milliseconds "$ended - $at")" "$bound_ms"
  [[ $shown_exit =~ ^($exit)$ ]] || wrong+=("exit is $shown_exit, not $exit")
  [ "${PETS:-}" = may ] || no_pet
  $heal
  back_again "$EPOCHREALTIME"
  one_record
}

no_pet() {
  local late=$(seconds "$(seen_by_witness pet) - $at - $LAST_PET_S")
  [[ $late = -* ]] || wrong+=("petted $late too late")
}

# The service is ready again, by itself: counted from the moment when nothing stands in its way any more.
back_again() {
  local free=$1 ready_at
  # A frozen thread is gone with its process.
  case $heal in nothing | thaw) free=$ended ;; esac
  if ready_at=$(inside python3 /chaos/witness.py ready "$before" $READY_AGAIN_S); then
    shown_ready=$(seconds "$ready_at - $free")
  else
    wrong+=("did not come back")
  fi
}

lived() {
  kill_witness
  [ "$must" != dies ] || wrong+=("did not die")
  shown_after="lives"
  # While the fault lasts: what cannot be answered now would be answered too late.
  [ "$must" != either ] || { count_jobs; shown_after="lives, and answers"; }
  $heal
  eventually 30 "the service to be ready after the fault" ready || wrong+=("is not ready afterwards")
  [ "$(property MainPID)" = "$before" ] || wrong+=("died")
  local records=$(inside journalctl -q --since="@$since" -o json | grep -c '"KILL_REASON"')
  [ "$records" = 0 ] || wrong+=("$records records without a death")
}

# Found by what a person types, and nothing else of the kind.
one_record() {
  local found all
  [[ $reason != *"|"* ]] || reason=$(inside journalctl -q --since="@$since" -o json | sed -n 's/.*"KILL_REASON":"\('"${reason//|/\\|}"'\)".*/\1/p' | head -1)
  found=$(inside journalctl -q -u embeddings --since="@$since" -o cat KILL_REASON="$reason" | wc -l)
  all=$(inside journalctl -q --since="@$since" -o json --output-fields=KILL_REASON,STAGE,MESSAGE,_SYSTEMD_UNIT |
    grep '"KILL_REASON"')
  echo "records: $all"
  shown_reason=$(sed -n 's/.*"KILL_REASON":"\([^"]*\)".*/\1/p' <<<"$all" | paste -sd ' ')
  : "${shown_reason:=none}"
  [ "$found" = 1 ] || wrong+=("journalctl finds $found records of $reason")
  [ "$(grep -c . <<<"$all")" = "$found" ] || wrong+=("$(grep -c . <<<"$all") records of one death")
}

# --- starts that must be refused -----------------------------------------------------------------------

#   refused TITLE REASON EXIT INJECT HEAL
#
# The service is restarted by hand onto something that no restart can mend; it must say so, and stay down.
refused() {
  local title=$1 reason=$2 exit=$3 inject=$4 heal=$5 bound_ms=10000 must=dies
  local wrong=() since before at ended witness count jobs=– lost=– twice=–
  local shown_after=– shown_exit=none shown_reason=none shown_ready="stays down"
  [ -z "${ONLY:-}" ] || [[ $title =~ $ONLY ]] || return 0
  observe_refusal >"$logs/fault.log" 2>&1 || true
  conclude || true
}

observe_refusal() {
  $inject || wrong+=("could not be injected")
  since=$EPOCHREALTIME
  restart --no-block
  eventually $((bound_ms / 1000)) "the unit to fail" active_state_is failed || wrong+=("did not fail")
  shown_after=$(seconds "$EPOCHREALTIME - $since")
  shown_exit=$(property ExecMainStatus)
  [ "$shown_exit" = "$exit" ] || wrong+=("exit is $shown_exit, not $exit")
  sleep 3 # Longer than RestartSec.
  active_state_is failed || wrong+=("was restarted")
  one_record
  $heal
  restart
  eventually 30 "the service to be ready after the fault" ready || wrong+=("is not ready afterwards")
}

# --- jobs ----------------------------------------------------------------------------------------------

start_load() {
  inside rm -f /run/chaos-sent
  inside systemd-run --quiet --unit=chaos-load python3 /chaos/load.py run $RATE_PER_S
  eventually 20 "the first jobs to be sent" load_is_under_way
}

load_is_under_way() { [ "$(inside sh -c 'cat /run/chaos-sent 2>/dev/null | wc -l')" -ge 3 ]; }

# Once per fault: stops the load and waits for its answers.
count_jobs() {
  [ "${RATE:-}" != 0 ] && [ -z "${count:-}" ] || return 0
  inside systemctl stop chaos-load 2>/dev/null
  count=$(inside timeout 120 python3 /chaos/load.py count $ANSWERED_S)
  jobs=$(json sent <<<"$count") lost=$(json lost <<<"$count") twice=$(json twice <<<"$count")
  [ "${jobs:-0}" -gt 0 ] || wrong+=("no job was sent")
  [ "$lost" = 0 ] || wrong+=("$lost jobs lost")
  [ "$(json errors <<<"$count")" = 0 ] || wrong+=("$(json errors <<<"$count") wrong answers")
}

# --- the end of a row ----------------------------------------------------------------------------------

conclude() {
  local bound=$(seconds "$bound_ms / 1000") verdict=pass
  [ $must != lives ] || bound="must live for $bound"
  if [ ${#wrong[@]} = 0 ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1)) verdict=FAIL
    shown_after="**FAIL** ($(printf '%s; ' "${wrong[@]}" | sed 's/; $//')) $shown_after"
  fi
  rows+=("| $title | $shown_after | $bound | $shown_exit | $shown_reason | $shown_ready | $jobs | $lost | $twice |")
  printf '%s  %s: after %s (bound %s), exit %s, record %s, ready again after %s, jobs %s, lost %s, twice %s\n' \
    $verdict "$title" "$shown_after" "$bound" "$shown_exit" "$shown_reason" "$shown_ready" "$jobs" "$lost" "$twice"
  [ $verdict = FAIL ] || return 0
  explain
  mend
}

explain() {
  { cat "$logs/fault.log"; [ -z "${since:-}" ] || journal -n 40 --since="@$since"; } 2>&1 | sed 's/^/      : /'
}

# A failure must not spoil the next fault.
mend() {
  kill_witness
  $heal >/dev/null 2>&1
  inside systemctl stop chaos-load 2>/dev/null
  ready || restart || true
}

# --- small things --------------------------------------------------------------------------------------

nothing() { :; }
json() { python3 -c "import json, sys; print(json.load(sys.stdin).get('$1', ''))" 2>/dev/null; }
seen_by_witness() {
  local value=$(grep '^{' "$logs/witness" 2>/dev/null | json "$1")
  case $value in True) echo true ;; None) echo 0 ;; *) echo "$value" ;; esac
}
kill_witness() { { [ -z "${witness:-}" ] || { kill $witness && wait $witness; }; } 2>/dev/null || true; }
seconds() { awk "BEGIN { printf \"%.1f s\", $1 }"; }
milliseconds() { awk "BEGIN { printf \"%d\", 1000 * ($1) }"; }
sleep_until() { sleep "$(awk "BEGIN { left = $1 + $2 / 1000 - $EPOCHREALTIME; print (left > 0 ? left : 0) }")"; }
at_most() { [ "$2" -le $(($3 + SLACK_MS)) ] || wrong+=("$1 after $2 ms, bound $3 ms"); }
