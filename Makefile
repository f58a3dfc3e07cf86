# Every target sets up .venv first, on a machine that has Python 3.11 or newer, make and a C++ compiler.
# The stamps in .venv remember what is installed, so that a second run starts at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUNTIME := $(VENV)/runtime.stamp
TEST := $(VENV)/test.stamp
NATIVE := $(VENV)/native.stamp
NATIVE_SOURCES := CMakeLists.txt $(wildcard src/regard/attention/native/cpp/*)
SENTENCE := A man in a blue shirt is standing on a ladder cleaning a window.

# `make bench BENCH=benchmarks/NAME.py` runs another one; those of learning need data, see their --help.
BENCH ?= benchmarks/attention.py
PYTEST_ARGS ?=
# `make native CMAKE_ARGS=-DREGARD_SANITIZE=ON` passes options to CMake; they stay until they are switched OFF again.
CMAKE_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint native bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

demo: $(RUNTIME) $(NATIVE)  ## translate a sentence and show who attended to whom
	$(BIN)/regard see "$(SENTENCE)"

test: lint  ## ruff, pyright, import-linter and all tests (PYTEST_ARGS=... adds arguments for pytest)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(TEST) $(NATIVE)  ## ruff, pyright and import-linter alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pyright
	$(BIN)/lint-imports --no-logo

native: $(BIN)/cmake  ## compile what was edited of the C++ kernel (in build/native, then beside library.py)
	@$(BIN)/cmake -S . -B build/native $(CMAKE_ARGS)
	@MAKEFLAGS=--no-print-directory $(BIN)/cmake --build build/native --parallel
	@touch $(NATIVE)

bench: $(TEST) $(NATIVE)  ## run the benchmarks (BENCH=benchmarks/NAME.py runs one)
	@test -n "$(BENCH)" || echo "make bench: there is no benchmark in benchmarks/"
	@set -e; for script in $(BENCH); do echo "== $$script"; $(BIN)/python $$script; done

clean:  ## remove .venv, caches and built files
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	rm -f src/regard/attention/native/libregard_native.*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv puts in place, so a .venv that was interrupted half way is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: regard needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot make virtual environments: install its venv module (python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# In place of the cmake that the system may have or not: one version, and its cache stays valid.
$(BIN)/cmake: | $(BIN)/pip
	$(PIP_INSTALL) cmake

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing regard into $(VENV) (the first time takes some minutes)"
	$(PIP_INSTALL) -e .
	@touch $(NATIVE) $@

$(TEST): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing regard and what its tests need into $(VENV) (the first time takes some minutes)"
	$(PIP_INSTALL) -e '.[train,frames,test,dev]'
	@touch $(RUNTIME) $(NATIVE) $@

# Installing compiles the kernel, too; after that only what was edited is compiled.
$(NATIVE): $(NATIVE_SOURCES) | $(RUNTIME)
	@$(MAKE) --no-print-directory native
