# A private RabbitMQ and a private service below one folder, for demo and bench; sourced after lib.sh.

private_broker='' private_service=''

# start_private FOLDER MODEL: returns when the service is ready; sets `private_config` and `ready_ms`.
start_private() {
  local folder=$1 model=$2 port began
  need_packages rabbitmq-server
  rm -rf "$folder"
  mkdir -p "$folder/run"
  private_config=$folder/embeddings.toml
  private_log=$folder/service.log
  trap stop_private EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM

  port=$(free_ports 25700)
  say "starting a private RabbitMQ on port $port"
  setsid "$ROOT/scripts/broker" "$folder/broker" "$port" >"$folder/broker.log" 2>&1 &
  private_broker=$!
  wait_for 90 "RabbitMQ, see $folder/broker.log" port_answers "$port"

  cat >"$private_config" <<-END
	[broker]
	url = "amqp://guest:guest@127.0.0.1:$port/%2f"
	[http]
	listen = ""
	[models."all-MiniLM-L6-v2"]
	path = "$model"
	END
  say "starting the service"
  began=$(date +%s%3N)
  RUNTIME_DIRECTORY=$folder/run STATE_DIRECTORY=$folder/state CACHE_DIRECTORY=$folder/cache \
    setsid "$BINARY" serve --config "$private_config" >"$private_log" 2>&1 &
  private_service=$!
  wait_for 120 "the service, see $private_log" service_ready || { tail -20 "$private_log" >&2; return 1; }
  ready_ms=$(($(date +%s%3N) - began))
}

# Ready is who answers: one line there and back.
service_ready() {
  kill -0 "$private_service" && echo ready | "$BINARY" submit --config "$private_config" --quiet --timeout 5
}

# Stops what start_private started, in reverse order, and waits for it.
stop_private() {
  local process
  for process in $private_service $private_broker; do
    kill "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  private_service='' private_broker=''
}
