# make demo    all stages on a made-up archive, ending in a report (minutes, no GPU needed)
# make test    lint, types and the tests
# make proofs  the long proofs; each leaves its JSON under results/proofs/
# make lock    pin requirements.lock anew from pyproject.toml
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.ready
DEMO ?= runs/demo

.PHONY: demo test lint proofs lock

demo: $(SETUP)
	$(BIN)/bandstream demo --out $(DEMO)

test: lint
	$(BIN)/pytest -n 2 --dist loadgroup

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proofs: $(SETUP)
	$(BIN)/python -m tests.proofs

lock: $(SETUP)
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
		--python-version 3.11 --extra dev --upgrade pyproject.toml -o requirements.lock

$(SETUP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("bandstream needs Python 3.11 or later; name one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@
