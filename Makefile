# `make demo` and `make test` need nothing but a Python (3.10 or newer) and a network: each makes the virtual environment
# first, and finds it ready the next time.
#
#   VENV    where the environment stands                                        make demo VENV=~/envs/hat
#   PYTHON  the Python that it is made of                                       make venv PYTHON=python3.12
#   TORCH   what pip is to install as PyTorch; any of pip's options may stand in it. For the CPU alone:
#           make venv TORCH='--index-url https://download.pytorch.org/whl/cpu torch==2.13.0 torchvision==0.28.0'
#   JOBS    how many processes share the tests, 4 at most; 0: this one alone    make test JOBS=0 ARGS=--pdb
#   ARGS    more arguments for the command                                      make test ARGS='-k tiles -x'

VENV   ?= .venv
PYTHON ?= python3
TORCH  ?= torch==2.13.0 torchvision==0.28.0
JOBS   ?= auto
ARGS   ?=

# Each process takes 1 to 3 GB.
PARALLEL := -n $(JOBS) --maxprocesses 4 --dist worksteal

BIN   := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help venv demo test test-all bench lint format wheel clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo      set up, train a small HAT on real photographs, compare it with bicubic (minutes, CPU)'
	@echo 'make test      set up, run the tests that need no GPU and no patience; test-all runs every one'
	@echo 'make bench     time and memory beside those of the published code, as markdown (an hour; ARGS=--quick: a minute)'
	@echo 'make lint      ruff, its formatter and mypy; `make format` mends what can be mended'
	@echo 'make venv      the set-up alone, in $(VENV)'
	@echo 'make wheel     dist/hat_plugin-*.whl'
	@echo 'make clean     remove $(VENV) and what building left behind'

venv: $(READY)

# Remade when one of these files is newer. BasicSR comes by its own script: see the script for why.
$(READY): setup.py pyproject.toml Makefile hat_plugin/install_basicsr.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed, this is %d.%d: make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	PIP_QUIET=1 $(BIN)/python hat_plugin/install_basicsr.py
	PIP_QUIET=1 $(BIN)/python -m pip install --editable '.[fast,tests,tools]'
	@touch $@

demo: $(READY)
	$(BIN)/basicsr demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m 'not gpu and not slow' $(ARGS)

test-all: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	test ! -f $(VENV)/pyvenv.cfg || rm -rf $(VENV)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
