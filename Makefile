# Needs Python 3.11 or newer and make; everything else is set up in .venv.
#   make demo    two agents, for real, in under a minute
#   make casa-demo   applications that know nothing of this system, bound by it
#   make test    lint, types and every test
#   make bench   how fast it is beside raw nats-py
#   make chaos   everything killed in turn under load: SECONDS=600 SEED=1
# Another interpreter: make PYTHON=/path/to/python3.13 test

VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
TEST_PROCESSES ?= 3

# A broker is several programs, and the tests start hundreds: where this is set each compiles everything anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo bench speed docs test lint format types unit chaos fuzz cluster soak setup nats-cli clean sidecar-kills explorer-demo browser casa-demo

help:
	@echo "make demo    bring everything up, run two agents, verify the audit, take everything down"
	@echo "make explorer-demo  the healthcare example with traffic, and a web page to watch it"
	@echo "make casa-demo  an MCP server, an A2A agent and a client, unmodified, and what policy makes of them"
	@echo "make test    lint, types and every test"
	@echo "make unit    the tests that start no whole broker"
	@echo "make chaos   break everything in turn under load and look for losses: SECONDS=600 SEED=1"
	@echo "make bench   how fast it is beside raw nats-py, in one run; QUICK=1 in under a minute"
	@echo "make speed   whether it has become slower than benchmarks/expected.json says"
	@echo "make sidecar-kills  the sidecar of an MCP server killed while money is transferred: COUNT=100"
	@echo "make fuzz    what hypothesis makes up, against policy and manifests: SECONDS=600 SEED=1"
	@echo "make cluster the longer tests of three nodes: killed, restarted, cut off"
	@echo "make docs    the pages of docs/ as a site in build/docs"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite what it can"
	@echo "make nats-cli the nats command for the tests that use it, where there is Go"
	@echo "make setup   only the virtual environment and the two servers"
	@echo "make soak    the memory of every process under load; SECONDS=1200"
	@echo "make clean   remove the virtual environment, caches and the .mas folder"

demo: setup
	@$(BIN)/python -m examples.demo

# Prints the address of the page; Ctrl-C ends everything. PORT=0 takes a free one.
explorer-demo: setup
	@$(BIN)/python -m examples.explorer --port $(or $(PORT),8230)

casa-demo: setup
	@$(BIN)/python -m examples.casa

# In several processes; what fails in company is repeated alone, and named.
test: lint nats-cli browser
	@sh .ci/tests $(BIN)/python $(TEST_PROCESSES) $(PYTEST_ARGS)

# The pages of docs/ as a site in build/docs; warnings are errors.
docs: setup
	$(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: setup
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Memory of every process under load: make soak SECONDS=1200
soak: setup
	$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),1200)

unit: setup
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

# The result is in build/chaos.json too. More: python -m tests.chaos --help
chaos: setup
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),120) --seed $(or $(SEED),1)

# The result is in benchmarks/results: latest.json, latest.md and plots. More: python -m benchmarks.bench --help
bench: setup
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/python -m pip install --quiet matplotlib || true
	$(BIN)/python -m benchmarks.bench $(if $(QUICK),--quick)

# Ratios to raw nats-py; make test does it at its end. A new file: python -m benchmarks.gate --write
speed: setup
	$(BIN)/python -m benchmarks.gate

# make test does it eight times; a hundred take some ten minutes.
sidecar-kills: setup
	SIDECAR_KILLS=$(or $(COUNT),100) $(BIN)/python -m pytest tests/sidecar/test_at_most_once.py -k killed --timeout 0 \
		$(PYTEST_ARGS)

# Payloads, calls, policies and manifests that nobody would write.
fuzz: setup
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1)

# What tests/cluster has that takes minutes: nodes restarted one by one, all killed, one cut off.
cluster: setup
	$(BIN)/python -m pytest tests/cluster -m cluster $(PYTEST_ARGS)

# Does nothing when it was done before, for this pyproject.toml and this version of Python.
setup:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh .ci/setup

# The nats command, for the tests that look into a broker with it: built once where there is a Go toolchain.
nats-cli: setup
	@VENV="$(VENV)" sh .ci/nats-cli

# Chromium for the tests of the explorer's pages, where this system's packages can be installed.
browser:
	@sh .ci/browser

clean:
	@if [ -x $(BIN)/mas ]; then $(BIN)/mas down >/dev/null 2>&1 || true; fi
	rm -rf $(VENV) .mas build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
