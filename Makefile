# `make demo` runs the main job, `make test` passes the tests. Prerequisites: make, Python 3.11+ with venv
# (Debian and Ubuntu: apt-get install make python3-venv).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv ignores pip's settings, so hand this one on.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: demo test test-slow test-faults lint types layers docs pytest coverage test-matrix hooks release-check bench audit clean

demo: $(VENV)/.ok
	rm -rf runs/demo
	$(BIN)/metamixer train recipes/demo.yaml --baseline --out runs/demo

test: lint types layers docs pytest

lint: $(VENV)/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ok
	$(BIN)/mypy

layers: $(VENV)/.ok
	$(BIN)/lint-imports --no-cache

# The documentation site in build/docs/index.html; every warning is an error.
docs: $(VENV)/.ok
	$(BIN)/sphinx-build -E -W --keep-going -q docs build/docs

pytest: $(VENV)/.ok
	$(BIN)/pytest -n 2 --dist worksteal

# The same tests, a quarter slower: lines that none of them runs are listed in build/coverage; below the floor of pyproject.toml it fails.
coverage: $(VENV)/.ok
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=html

# Every method learns, every crash point, studies killed at random, and the slow half of test-faults: an hour.
test-slow: $(VENV)/.ok
	$(BIN)/pytest -m slow -n 2 --dist worksteal --timeout 1800

# Kills, damaged checkpoints, full disks, bad data, long runs: all of tests/faults, one process, because children are timed.
test-faults: $(VENV)/.ok
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow or not slow" -n 0 --timeout 1800 tests/faults

# The tests on the oldest and the newest supported Python, torch and other dependencies; MATRIX=newest runs one of them.
# The newest Python is the newest that uv finds or fetches; NEWEST_PYTHON=/path/to/python names another one.
test-matrix: $(VENV)/.ok
	$(BIN)/python scripts/test_matrix.py $(MATRIX)

# ruff, mypy and the import layers before every commit.
hooks: $(VENV)/.ok
	$(BIN)/pre-commit install

# Build the wheel and use it in an empty environment.
release-check: $(VENV)/.ok
	$(BIN)/python scripts/release_check.py

# How fast it is here, an hour or two. An environment of its own, because other libraries are measured beside it.
bench: $(VENV)-bench/.ok
	$(VENV)-bench/bin/python -m benchmarks --out runs/bench $(BENCH)

$(VENV)-bench/.ok: pyproject.toml constraints.txt | $(VENV)/.ok
	$(PYTHON) -m venv $(VENV)-bench
	$(BIN)/uv pip install -q --python $(VENV)-bench/bin/python -c constraints.txt -e '.[bench]' || \
		$(VENV)-bench/bin/pip install -q -c constraints.txt -e '.[bench]'
	@# Its pins are of 2021 and cannot be kept beside a torch of today; the one file that is measured needs none of them.
	$(BIN)/uv pip install -q --python $(VENV)-bench/bin/python --no-deps KD-Lib || \
		$(VENV)-bench/bin/pip install -q --no-deps KD-Lib
	touch $@

$(VENV)/.ok: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "metamixer needs Python 3.11 or newer; PYTHON=python3.12 make ... names another one"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# uv is several times faster than pip; without it pip does the same.
	$(BIN)/pip install -q uv || true
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]' || \
		$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# Licences of what is needed, and known vulnerabilities of the pinned versions where the network allows to ask.
audit: $(VENV)/.ok
	$(BIN)/python scripts/licences.py
	$(BIN)/python scripts/audit.py

clean:
	rm -rf $(VENV) $(VENV)-bench runs build docs/api
