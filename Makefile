# `make demo` runs the main job, `make test` passes the tests. Prerequisites: make, Python 3.11+ with venv
# (Debian and Ubuntu: apt-get install make python3-venv).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv ignores pip's settings, so hand this one on.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: demo test test-slow lint types layers pytest bench clean

demo: $(VENV)/.ok
	rm -rf runs/demo
	$(BIN)/metamixer train recipes/demo.yaml --baseline --out runs/demo

test: lint types layers pytest

lint: $(VENV)/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ok
	$(BIN)/mypy

layers: $(VENV)/.ok
	$(BIN)/lint-imports --no-cache

pytest: $(VENV)/.ok
	$(BIN)/pytest -n 2 --dist worksteal

# Every crash point and kill, minutes long.
test-slow: $(VENV)/.ok
	$(BIN)/pytest -m slow --timeout 1800

$(VENV)/.ok: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "metamixer needs Python 3.11 or newer; PYTHON=python3.12 make ... names another one"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# uv is several times faster than pip; without it pip does the same.
	$(BIN)/pip install -q uv || true
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]' || \
		$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
