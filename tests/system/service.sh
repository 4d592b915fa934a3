# The packages and the service in the container; sourced after container.sh. `dist` is the folder of the packages.

readonly READY_LINE='^ready · all-MiniLM-L6-v2 on cpu · '

# embeddings, or embeddings-cuda, which has all of it with another program.
package=${PACKAGE:-embeddings}
embeddings=$(ls "$dist/${package}"_*.deb)
model=$(ls "$dist"/embeddings-model-*.deb)

apt() { job apt-get -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 -y "$@"; }
install_both() { apt install "$@" "/dist/${embeddings##*/}" "/dist/${model##*/}"; }
active_state_is() { [ "$(property ActiveState)" = "$1" ]; }
status_matches() { [[ $(property StatusText) =~ $1 ]]; }
ready() { active_state_is active && status_matches "$READY_LINE"; }
start_broker() { job systemctl start rabbitmq-server.service; }

signal_service() { job systemctl kill --kill-whom=main --signal="$1" "$unit"; }

# As an administrator does who may do so more often than the start limit allows.
restart() {
  inside systemctl reset-failed "$unit"
  job systemctl restart "$@" "$unit"
}

# A drop-in of this name with the lines of stdin, as `systemctl edit` would make it.
drop_in() {
  inside mkdir -p "/etc/systemd/system/$unit.service.d"
  inside tee "/etc/systemd/system/$unit.service.d/$1.conf" >/dev/null
  inside systemctl daemon-reload
}
