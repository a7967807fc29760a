# Two commands for a newcomer: `make demo` and `make test`. Both set everything up themselves.
PYTHON ?= python3.11
BIN := .venv/bin
# One thread to each network: two threads beside a busy core wait for each other. Contracts go by the file to three
# processes, so that two cores are busy while one waits; long tests one by one, in the files' order as far as it goes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test verify gpu bench lint format clean

demo: .venv/worker  ## train on real digits, forget through the REST API, show what changed
	$(BIN)/python -m demo

test: .venv/test lint  ## contracts on tiny networks, real Postgres and Redis; what CI runs
	$(PYTEST) --numprocesses 3 --dist loadfile

verify: .venv/test  ## everything that trains or takes long
	$(PYTEST) --numprocesses auto --maxprocesses 4 --dist worksteal -m verify

gpu: .venv/test  ## what needs an accelerator
	$(BIN)/python -m pytest -m gpu

bench: .venv/test  ## measurements, one JSON line each
	for bench in tests/benchmarks/bench_*.py; do $(BIN)/python -m tests.benchmarks.$$(basename $$bench .py) || exit 1; done

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/worker: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[worker]'
	touch $@

.venv/test: .venv/worker
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[worker,test]'
	touch $@

clean:
	rm -rf .venv .lethe
