# Two commands for a new user: `make demo` and `make test`. Each makes .venv itself; running one again costs nothing.
PYTHON ?= python3
# The newest torch that requirements.txt admits and that the tests ran with; set TORCH to take another one.
TORCH ?= torch==2.13.0
BIN := .venv/bin
DEMO ?= demo

.PHONY: demo test lint format clean

.venv/user: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/developer: requirements-dev.txt .venv/user
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: .venv/user
	@PYTHON=$(BIN)/python DEMO=$(DEMO) bash demo.sh

test: .venv/developer
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/developer
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv $(DEMO)
