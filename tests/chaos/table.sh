# What `make chaos` writes into docs/chaos.md: its rows, and the words above them; sourced by run.

readonly DOCUMENT=$here/../../docs/chaos.md

section() {
  platform "$passed passed, $failed failed."
  echo '| fault | died after | bound | exit | reason found in the journal | ready again after | jobs | lost | done twice |'
  echo '|---|---|---|---|---|---|---|---|---|'
  printf '%s\n' "${rows[@]}"
  echo
}

head_of_document() {
  cat <<END
# Chaos

What happens to \`embeddings\` when the world around it, or a part of itself, breaks. \`make chaos\` does this harm to the
installed package beside a real RabbitMQ in a booted Debian, and **writes this file**; \`make test\` does the first
eight. No hand is laid on the service between a fault and "ready again".

- Most rows run with shorter settings than the shipped ones, so that a run takes minutes, and in the same order:
  \`disconnect_kill_ms\` $DISCONNECT_MS, \`liveness_max_stall_ms\` $STALL_MS, \`watchdog_interval_ms\` $CHECK_MS, \`canary_interval_ms\` $CANARY_MS,
  \`WatchdogSec\` $((WATCHDOG_MS / 1000)) s, \`TimeoutAbortSec\` $((ABORT_MS / 1000)) s, \`RestartSec\` 1 s.
- **died after**: from the harm to the end of the process. A row fails more than $SLACK_MS ms behind its bound: a dying
  process stays for 300 ms, so that journald can read to which unit its record belongs. "lives": the same process
  goes on, without a record, for as long as the bound says.
- **exit** is systemd's \`ExecMainStatus\`; **reason** is what \`journalctl -u embeddings KILL_REASON=…\` found: exactly one new
  record, and no other record of a death anywhere in the journal.
- **ready again after**: from the moment when nothing stands in the way any more, that is, when the broker is back, or
  the process is gone.
- **jobs**: sent during the row, $RATE_PER_S per second, both lanes. *Lost*: without an answer. *Done twice*: with a second answer, because the
  process died between an answer and its acknowledgement.
- One thread frozen alone does harm from its next turn on; its bound has a second for that.
- No row that ends in a death has petted systemd's watchdog after the harm, except where one thread of several stands.

END
}
