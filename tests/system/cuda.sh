# The package embeddings-cuda on a machine that has neither a card nor CUDA's libraries; sourced after service.sh.

auto_falls_back() {
  start_broker
  install_both
  eventually 60 "the service to be ready" ready
  expect_match "journal" 'libcuda\.so\.1 cannot be opened' "$(journal)"
  expect "warnings of it" 1 "$(journal | grep -c 'libcuda\.so\.1 cannot be opened')"
  expect_match "embeddings check" 'warning +device\.fallback .*libcuda\.so\.1' "$(inside embeddings check || true)"
}

asking_for_a_card_names_what_is_missing() {
  inside tee /etc/embeddings/conf.d/card.toml >/dev/null <<<$'[models."all-MiniLM-L6-v2"]\ndevice = "cuda"'
  restart --no-block
  eventually 30 "the service to have ended" active_state_is failed
  expect "exit status" 78 "$(property ExecMainStatus)"
  expect "restarts" 0 "$(property NRestarts)"
  expect_match "status" 'libcuda\.so\.1 cannot be opened' "$(property StatusText)"
  inside rm /etc/embeddings/conf.d/card.toml
  restart
  eventually 60 "the service to be ready" ready
}

# Needs both packages in dist/.
takes_the_place_of_the_other() {
  local other=$(ls "$dist"/embeddings_*.deb)
  apt install "/dist/${other##*/}"
  expect "the package with the card" "" "$(inside dpkg-query --show --showformat='${db:Status-Status}' embeddings-cuda 2>/dev/null | grep '^installed' || true)"
  eventually 60 "the service to be ready" ready
  install_both
  eventually 60 "the service to be ready" ready
  expect_match "program" 'embeddings-cuda' "$(inside dpkg --search /usr/bin/embeddings)"
}
