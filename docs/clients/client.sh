#!/bin/sh
# Vectors for texts by HTTP, in the shell. Needs curl and jq: apt install curl jq.
#
#   client.sh TEXT...
#
# One line of JSON for each text, in order. EMBEDDINGS_HTTP is another address than http://127.0.0.1:8970, EMBEDDINGS_BUDGET
# the seconds that you will wait (30), EMBEDDINGS_TOKEN_FILE a file with the token where the service asks for one.
# Exit: 0 done, 1 the job was refused or failed, 2 wrong use, 69 no service, or no answer in time.
set -eu

[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
address=${EMBEDDINGS_HTTP:-http://127.0.0.1:8970}
budget=${EMBEDDINGS_BUDGET:-30}

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
set_token() {
	# From a file and by stdin, since every user of the machine sees the arguments of a program.
	[ -z "${EMBEDDINGS_TOKEN_FILE:-}" ] || printf 'header = "Authorization: Bearer %s"\n' "$(head -n 1 "$EMBEDDINGS_TOKEN_FILE")"
}

# A service that is full answers 429, one that starts or stops 503, both with Retry-After, which --retry heeds; one that is
# being restarted refuses the connection.
code=0
status=$(set_token | curl --config - --silent --show-error \
	--retry 100 --retry-connrefused --retry-max-time "$budget" --max-time "$budget" \
	--header 'content-type: application/json' --header "x-budget-ms: $((budget * 1000))" \
	--data "$(jq -nc '{input: $ARGS.positional}' --args -- "$@")" \
	--output "$answer" --write-out '%{http_code}' "$address/v1/embeddings") || code=$?

if [ "$code" != 0 ]; then
	echo "error: no answer from $address (embeddings status says why)" >&2
	exit 69
fi
if [ "$status" != 200 ]; then
	jq -r '"error: \(.error.code): \(.error.message)"' "$answer" >&2
	exit 1
fi
jq -c '[$ARGS.positional, .data] | transpose[] | {text: .[0], embedding: .[1].embedding}' "$answer" --args -- "$@"
