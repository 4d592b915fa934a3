# Runs what the documents tell people to run, as it stands; sourced by run.

root=$(cd "$here/../.." && pwd)

# The blocks of a document that are marked `sh run`, as one script that ends at the first failure. The output of each begins
# with a line that no command prints.
script_of() {
  echo 'set -eu'
  awk '/^```sh run$/ { inside = 1; printf "printf \"\\n== block %d\\n\"\n", ++number; next }
       /^```$/ { inside = 0 }
       inside' "$1"
}

# document_runs FILE [FOLDER]: in a shell of an administrator, in that folder. Where TRANSCRIPTS is a folder, what was said is kept there.
document_runs() {
  local code=0
  # systemd counts starts by hand as well, and nobody reads all documents within a quarter of an hour.
  inside systemctl reset-failed embeddings 2>/dev/null || true
  script_of "$root/$1" >"$logs/document.sh"
  grep -q '^printf' "$logs/document.sh" || fail "$1 has nothing to run"
  job -p WorkingDirectory="${2:-/root}" --setenv=HOME=/root bash /next/document.sh >"$logs/document.out" 2>&1 || code=$?
  cat "$logs/document.out"
  [ -z "${TRANSCRIPTS:-}" ] || cp "$logs/document.out" "$TRANSCRIPTS/$(basename "$1" .md).out"
  expect "exit code" 0 "$code"
}

# On so small a machine there is no sudo; an administrator needs none.
has_an_administrator() {
  printf '#!/bin/sh\nexec "$@"\n' | inside install -m 755 /dev/stdin /usr/local/bin/sudo
  # apt can neither change its user nor have a terminal in here.
  printf 'APT::Sandbox::User "root";\nDpkg::Use-Pty "0";\n' | inside tee /etc/apt/apt.conf.d/99container >/dev/null
  start_broker
}

# What security.md promises after its commands: each kind of user can do its work and nothing else.
users_may_do_their_work_and_no_more() {
  local out try
  try='import pika, sys
def tried(user, act):
    url = "amqp://%s:%s-secret@127.0.0.1/embeddings" % (user, user)
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    try:
        act(channel)
        return "may"
    except pika.exceptions.ChannelClosedByBroker as error:
        return str(error.reply_code)
    finally:
        connection.close()
def own_queue(channel):
    return channel.queue_declare("", exclusive=True).method.queue
def watch(channel):
    channel.queue_bind(own_queue(channel), "embeddings.events", "heartbeat.#")
print("caller", tried("caller", own_queue),
      tried("caller", lambda channel: channel.basic_get("embeddings.interactive")),
      tried("caller", lambda channel: channel.basic_get("embeddings.dead")),
      tried("caller", lambda channel: channel.queue_declare("embeddings.mine")),
      tried("caller", lambda channel: channel.queue_purge("embeddings.bulk")),
      tried("caller", lambda channel: channel.basic_publish("embeddings.events", "heartbeat.x", b"")),
      tried("caller", watch))
print("watcher", tried("watcher", watch),
      tried("watcher", lambda channel: channel.basic_get("embeddings.interactive")),
      tried("watcher", lambda channel: channel.basic_publish("", "embeddings.interactive", b"{}")))'
  out=$(job python3 -c "$try")
  expect "what a caller may" "caller may 403 403 403 403 403 403" "$(grep caller <<<"$out")"
  expect "what a watcher may" "watcher may 403 403" "$(grep watcher <<<"$out")"
  out=$(job python3 /usr/share/doc/embeddings/examples/clients/client.py \
    --url amqp://caller:caller-secret@127.0.0.1/embeddings "a text" "another")
  expect "vectors for a caller" 2 "$(grep -c embedding <<<"$out")"
  out=$(echo hello | job embeddings submit --quiet --set broker.url=amqp://caller:caller-secret@127.0.0.1/embeddings)
  expect "vectors by submit" 1 "$(grep -c embedding <<<"$out")"
  expect "journal lines with the password" 0 \
    "$(journal | grep -c -F "$(inside cat /etc/embeddings/broker-password)" || true)"
  out=$(inside rabbitmqctl --quiet list_connections user vhost)
  expect_match "the worker's connections" "embedder.embeddings" "$out"
}

# No expression of the worker's can be taken away.
worker_s_permissions_are_needed() {
  local part grant
  for part in 1 2 3; do
    grant=('^embeddings\.' '^(embeddings\.|amq\.default$)' '^embeddings\.')
    grant[part - 1]='^$'
    inside rabbitmqctl --quiet set_permissions -p embeddings embedder "${grant[@]}"
    inside systemctl reset-failed embeddings || true
    job systemctl restart --no-block embeddings
    sleep 4
    ! ready || fail "ready without permission $part"
  done
  inside rabbitmqctl --quiet set_permissions -p embeddings embedder '^embeddings\.' '^(embeddings\.|amq\.default$)' '^embeddings\.'
  inside systemctl reset-failed embeddings || true
  job systemctl restart --no-block embeddings
  eventually 60 "the service to be ready" ready
}

# Each release of systemd counts a little differently.
exposure_is_as_documented() {
  local unit score wrong=
  [ "$(. "$base/etc/os-release" && echo "$VERSION_CODENAME")" = bookworm ] || return 0
  for unit in embeddings.service embeddings@red.service embeddings-monitor.service embeddings-alarm@x.service; do
    score=$(inside systemd-analyze security --no-pager "$unit" | tail -1 | grep -oE '[0-9]+\.[0-9]+')
    echo "$unit $score"
    grep -q "^| \`${unit/@*.service/@.service}\` .*| $score |" "$root/docs/security.md" ||
      wrong=yes
  done
  [ -z "$wrong" ] || fail "security.md has other numbers"
}
