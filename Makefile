# Two commands do all set-up on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help run test test-cluster lint reload bench bench-quick chaos fire clean redis
help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /	/' | expand -t 13

run: .venv/run redis  ## set up and run everything in the foreground; Ctrl-C stops it
	@exec $(BIN)/python -m hookq.launch

test: .venv/dev redis  ## set up and run the tests
	$(BIN)/python -m compileall -q hookq tests webhookd.py worker.py dashboard.py dlqctl.py
	$(BIN)/pytest

test-cluster: .venv/dev redis  ## the tests of more than one machine: Sentinel, Cluster, TLS, hosts in network namespaces, nginx
	@sh hookq/setup.sh hosts
	$(BIN)/pytest -s tests/cluster

lint: .venv/dev  ## ruff, mypy (strict), and the sizes of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/python tests/house.py

reload: .venv/run  ## every process finishes what it has, then starts anew with the settings of now
	@$(BIN)/python -m hookq.launch reload

bench: bench/.peers/ready redis  ## webhookd beside its peers, 12 minutes, into bench/results
	$(BIN)/python -m compileall -q hookq
	$(BIN)/python bench/bench.py

bench-quick: bench/.peers/ready redis  ## the same in about a minute, less exact, only printed
	$(BIN)/python -m compileall -q hookq
	$(BIN)/python bench/bench.py --quick

chaos: .venv/dev redis  ## kill, freeze, fill and restart everything under load for CHAOS_S seconds (default 60)
	$(BIN)/python tests/chaos.py

fire: .venv/dev redis  ## the long forms of power loss, load, slow disks, clocks and hostile HTTP, then ten minutes of chaos
	@sh hookq/setup.sh faults
	FIRE=1 HOSTILE=100000 $(BIN)/pytest -s tests/test_power.py tests/test_load.py tests/test_signals.py tests/test_hostile.py
	CHAOS_S=600 $(BIN)/python tests/chaos.py

clean:  ## remove what set-up has made; .env and STATE_DIR stay
	rm -rf .venv bench/.peers build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/run: pyproject.toml
	@sh hookq/setup.sh venv "$(PYTHON)"
	$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

.venv/dev: pyproject.toml .venv/run
	$(BIN)/pip install -q --disable-pip-version-check -e .[dev]
	@touch $@

# What the bench stands beside; never needed otherwise.
bench/.peers/ready: bench/peers/package.json bench/peers/requirements.txt .venv/run
	@sh bench/peers/bring.sh "$(PYTHON)"
	@touch $@

# The embedded Redis, and the tests' own; not needed to run with REDIS_URL.
redis:
	@[ -n "$$REDIS_URL" ] && [ "$(MAKECMDGOALS)" = run ] || command -v redis-server >/dev/null || sh hookq/setup.sh redis
