# Everything runs in .venv, which `make setup` builds from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRIED := $(VENV)/.to-try
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup demo test test-slow deep check image-check bench soak fuzz format generate lock serve clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Build the virtual environment

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "recparams needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	touch $@

# What demo and serve need, which is much less.
$(TRIED): $(VENV)/.made constraints.txt pyproject.toml clients/python/pyproject.toml
	test -e $(STAMP) || $(PIP) --editable clients/python --editable '.[demo]' --group try
	touch $@

$(STAMP): $(VENV)/.made constraints.txt pyproject.toml clients/python/pyproject.toml
	$(PIP) --editable clients/python --editable '.[compare,demo,gym,otel,parquet,ray,report]' \
		--group try --group dev --group bench
	touch $@

demo: $(TRIED) ## Simulate weeks of use against a real server, then leave it up (ONCE=1: stop it)
	$(BIN)/recparams demo $(if $(ONCE),--once)

# Threads of BLAS would spin on the cores that other tests use.
test: export OPENBLAS_NUM_THREADS = 1
test: setup ## Run the tests, five files at a time: they often wait
	@# They start hundreds of processes, where the environment may forbid to keep bytecode.
	$(BIN)/python -m compileall -q rl server simulation clients/python/src benchmarks
	@# All who collect the tests then read them compiled.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --collect-only -qq > /dev/null & \
		$(BIN)/python -m recparams_server.jobs.warm && wait
	$(BIN)/python -m pytest --numprocesses 5 --dist loadfile --no-loadscope-reorder

test-slow: setup deep ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

deep: setup ## Add PyTorch, which learning by DQN and actor-critic needs
	$(PIP) --editable '.[deep]'

check: setup ## Lint, format check, types, architecture, protocol
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/check.py

image-check: setup ## Lint the Dockerfile and do what it says, without Docker
	$(BIN)/python -m deploy.image_check

bench: setup ## Measure all the docs state, into benchmarks/RESULTS.md (two hours; ONLY=learning: that alone)
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

soak: setup ## Load and faults for about MINUTES=5 minutes; fails where anything was lost
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),5)

fuzz: setup ## Hostile calls of every RPC for MINUTES=10; says its seed, and SEED=n repeats it
	seed=$(or $(SEED),$$(date +%s)); echo "seed $$seed"; \
		FUZZ_SEED=$$seed FUZZ_MINUTES=$(or $(MINUTES),10) $(BIN)/python -m pytest tests/test_fuzz.py

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: setup ## Regenerate the client stub, docs/api.md, the schemas of --json and test vectors
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py
	$(BIN)/python proto/reference.py
	$(BIN)/python -m recparams_server.cli.schemas
	$(BIN)/python tests/local_policy_vectors.py

lock: ## Renew constraints.txt (needs uv)
	uv pip compile --universal --no-emit-index-url --no-annotate --no-header \
		--python-version 3.11 --extra compare --extra demo --extra gym --extra otel --extra parquet --extra ray --extra report \
		--group try --group dev --group bench pyproject.toml \
		--no-emit-package recparams-client -o constraints.txt

serve: $(TRIED) ## Run a development server on 127.0.0.1:50051
	$(BIN)/recparams serve

clean: ## Remove what was built
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
