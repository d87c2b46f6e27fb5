# Two commands for a new user: `make demo` and `make test`. Each creates .venv if it is missing.
PYTHON ?= python3
# torch and torchvision have to come from the same index in matching versions, so pip resolves them together.
# Another pair: make TORCH="torch==2.13.0 torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch torchvision
# Processes that run the tests.
WORKERS ?= 2
BIN := .venv/bin
DEMO ?= demo

.PHONY: demo test lint docs format clean

.venv/user: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/developer: pyproject.toml .venv/user
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

demo: .venv/user
	@PYTHON=$(BIN)/python DEMO=$(DEMO) bash demo.sh

test: .venv/developer
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/developer
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: .venv/developer
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv $(DEMO)
