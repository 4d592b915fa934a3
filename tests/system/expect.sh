# Cases and expectations of the system tests; sourced.

passed=0 failed=0

# case_of "what is promised" FUNCTION: runs it in a shell of its own that ends at the first failure.
case_of() {
  local what=$1 began=$SECONDS status
  shift
  [ -z "${skip_scene:-}" ] || return 0
  # In the background, so that a signal to the run is obeyed at once and not after the case.
  (
    set -e
    "$@"
  ) >"$logs/case.log" 2>&1 &
  status=0
  wait $! || status=$?
  if [ $status = 0 ]; then
    passed=$((passed + 1))
    printf 'pass  %s (%d s)\n' "$what" $((SECONDS - began))
  else
    failed=$((failed + 1))
    printf 'FAIL  %s (%d s)\n' "$what" $((SECONDS - began))
    sed 's/^/      | /' "$logs/case.log"
    if [ -n "${nspawn:-}" ]; then
      { property StatusText; journal -n 25; } 2>&1 | sed 's/^/      : /'
    fi
  fi
}

fail() { printf '%s\n' "$*" >&2; return 1; }

# expect WHAT WANTED GOT
expect() { [ "$2" = "$3" ] || fail "$1: wanted «$2», got «$3»"; }

# expect_match WHAT REGEX GOT
expect_match() { [[ $3 =~ $2 ]] || fail "$1: wanted a match of «$2», got «$3»"; }

# eventually SECONDS WHAT COMMAND…: polls; passing the deadline is a failure.
eventually() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $deadline ] || { fail "gave up waiting for $what"; return 1; }
    sleep 0.2
  done
}
