# The two commands of the README, `make demo` and `make test`, need Python 3.10 or newer, a C compiler and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench clean

demo: $(VENV)/installed
	$(BIN)/codecplus demo

# One thread a process: two of each would wait for each other.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: $(VENV)/installed
	$(BIN)/ruff check src tests benchmarks spaces_demo
	$(BIN)/ruff format --check src tests benchmarks spaces_demo
	$(BIN)/pyright

bench: $(VENV)/installed
	$(BIN)/python benchmarks/speed.py

# constraints.txt holds the versions tested. torch first, so that no other package chooses its version.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo_output
