# The few verbs of this project; each is a small script in scripts/.

.PHONY: help demo test check check-cuda sim test-system chaos outages soak bench deb deb-cuda
help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: ## Build, start a private RabbitMQ and the service, embed real texts and search them
	@scripts/demo

test: ## Run every test that this machine can run
	@scripts/test

check: ## Check format, lints and documentation
	@scripts/check

check-cuda: ## Check all that can be known of CUDA without a card (its compiler comes from PyPI)
	@scripts/check-cuda

sim: ## Replay one seed of the simulation (make sim SEED=42), or search among fresh ones for a minute
	@scripts/sim "$(SEED)"

test-system: ## Test the packages in a booted Debian: sudo make test-system [DEBIAN=trixie]
	@scripts/test-system

chaos: ## Do harm to the installed service and write docs/chaos.md: sudo make chaos [DEBIAN=trixie] [ONLY=REGEX]
	@scripts/chaos

outages: ## Replay a week's outages of the broker in an hour and write docs/outages.md: sudo make outages [DEBIAN=trixie] [MINUTES=60] [SEED=1]
	@scripts/outages

soak: ## Count 100000 jobs while workers and nodes of a cluster are killed, and write docs/soak.md: make soak [JOBS=…] [WORKERS=3] [NODES=3] [KILLS=100] [SEED=1]
	@scripts/soak

bench: ## Measure the engine alone, through a private broker, and how work flows under load
	@scripts/bench

deb: ## Build the Debian packages into dist/
	@scripts/deb

deb-cuda: ## Build the package embeddings-cuda into dist/ (CUDA's compiler comes from PyPI)
	@scripts/deb-cuda
