# make demo, make test: complete on a fresh machine with Python, a C++ compiler and a package index.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
TORCH ?= torch==2.13.0
NEWEST_TORCH ?= torch

VENV := .venv
BIN := $(VENV)/bin
# A second environment with the newest torch, for what must not depend on the torch of the build.
NEWEST := .venv-newest
BUILD_TOOLS := "setuptools>=77" "pybind11>=2.13" "cmake>=3.24" ninja
NATIVE := CMakeLists.txt setup.py $(shell find cmake csrc -type f -not -name '*.pyc')
CXX_FILES := $(shell find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# One line a package, and one a file that is compiled, in place of pip's progress bars.
PROGRESS := | sed -un -E 's/^ *(Installing collected packages):.*/\1/p; /^(Collecting|Building|Successfully)/p; \
	s/^ *(\[[0-9]+\/[0-9]+\] (Building|Linking) [A-Z]+ object).*\/([^/]+)$$/\1 \3/p'

DEFAULT_MYPY := mypy --config-file= --ignore-missing-imports --explicit-package-bases

.PHONY: help install demo test test-slow bench lint format types test-abi sanitize test-cuda-build gpu-check test-gpu clean

help:
	@echo "make demo      train, evaluate and report on text found on this machine (runs/demo)"
	@echo "make test      the tests that take minutes"
	@echo "make test-slow the others: builds, kills, other processes, sources broken on purpose"
	@echo "make bench     the benchmarks"
	@echo "make lint      ruff, clang-format; make format applies them"
	@echo "make types     mypy"
	@echo "make test-abi  one wheel under two versions of torch"
	@echo "make sanitize  the kernels under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make test-cuda-build  the CUDA library, compiled and loaded under two torches (needs nvcc, no GPU)"
	@echo "make gpu-check PYTHON=python3  chosen tests and measurements on a GPU machine without package index;"
	@echo "               without a GPU a rehearsal on the CPU"
	@echo "make test-gpu  all tests on a GPU; a skip for want of one is a failure"
	@echo "make clean     remove builds and environments"
	@echo "PYTHON=$(PYTHON) TORCH=$(TORCH) choose the interpreter and the torch of $(VENV)"

$(VENV)/.torch:
	@echo "== $(VENV): $(TORCH)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(BUILD_TOOLS) "$(TORCH)" numpy $(PROGRESS)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(NATIVE)
	@echo "== $(VENV): consistentee, editable"
	$(BIN)/pip install -v --no-build-isolation --editable '.[dev]' $(PROGRESS)
	@touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/consistentee demo --output runs/demo

test: install
	$(BIN)/python -m pytest -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

bench: install
	$(BIN)/python -m pytest bench/ --benchmark-only

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# Tests, benchmarks and experiments by mypy's default checks, without the strict ones of
# pyproject.toml; two conftest.py are two runs.
types: install
	$(BIN)/mypy
	MYPYPATH=python:bench $(BIN)/$(DEFAULT_MYPY) bench experiments
	MYPYPATH=python:tests:bench $(BIN)/$(DEFAULT_MYPY) tests

$(NEWEST)/.torch:
	@echo "== $(NEWEST): $(NEWEST_TORCH)"
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install "$(NEWEST_TORCH)" "transformers>=5.3" numpy $(PROGRESS)
	@touch $@

test-abi: install $(NEWEST)/.torch
	rm -rf build/abi build/lib*
	$(BIN)/pip wheel --no-deps --no-build-isolation --wheel-dir build/abi . $(PROGRESS)
	$(BIN)/pip install --no-deps --target build/abi/site build/abi/*.whl $(PROGRESS)
	PYTHONPATH=build/abi/site $(BIN)/python tests/build/abi_check.py
	PYTHONPATH=build/abi/site $(NEWEST)/bin/python tests/build/abi_check.py

sanitize: install
	CONSISTENTEE_FORCE_CUDA=0 PATH="$(abspath $(BIN)):$$PATH" \
	  cmake -S . -B build/sanitize -G Ninja --fresh -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DCONSISTENTEE_SANITIZE=ON
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/sanitize --target kernels_test
	PATH="$(abspath $(BIN)):$$PATH" ctest --test-dir build/sanitize --output-on-failure

test-cuda-build: install $(NEWEST)/.torch
	rm -rf build/cuda build/lib*
	CONSISTENTEE_FORCE_CUDA=1 CMAKE_ARGS="$${CMAKE_ARGS:-} -DCONSISTENTEE_WERROR=ON" \
	  $(BIN)/pip wheel --no-deps --no-build-isolation --wheel-dir build/cuda . $(PROGRESS)
	$(BIN)/pip install --no-deps --target build/cuda/site build/cuda/*.whl $(PROGRESS)
	for python in $(BIN)/python $(NEWEST)/bin/python; do \
	  PYTHONPATH=build/cuda/site $$python tests/build/abi_check.py; \
	  PYTHONPATH=build/cuda/site $$python tests/build/cuda_link_check.py; \
	done

# With the interpreter's own packages: no virtual environment, no package index.
gpu-check:
	PYTHON="$(PYTHON)" bench/gpu_check.sh

# With TORCH=torch, on a machine with a card and its toolkit.
test-gpu: install
	CONSISTENTEE_FORCE_CUDA=1 $(BIN)/pip install -v --no-build-isolation --editable '.[dev]' $(PROGRESS)
	CONSISTENTEE_FAIL_WITHOUT_CUDA=1 $(BIN)/python -m pytest
	if command -v compute-sanitizer >/dev/null; then \
	  CONSISTENTEE_FAIL_WITHOUT_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	    compute-sanitizer --error-exitcode 1 $(BIN)/python -m pytest tests/cuda/test_gpu*.py; \
	fi

clean:
	rm -rf build dist *.egg-info $(VENV) $(NEWEST) consistentee_ext/*.so consistentee_ext/not_built.txt
