# Every target sets itself up first: ./setup.sh makes .venv, and does nothing when it is up to date.
MINIMUM_JAX := 0.11.2
JOBS ?= 2
BIN := .venv/bin
UV := $(BIN)/uv
EXPORT := --quiet --locked --no-header --no-annotate --no-emit-workspace
PYTEST := python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
RECORD := benchmarks/results/test-all.json
# Most tests compile far longer than they run; test-all's part with the oldest JAX tests what optimised programs compute.
QUICK := XLA_FLAGS=--xla_backend_optimization_level=0

# Dozens of processes import JAX: each is two to five seconds sooner if the first may keep its bytecode.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help setup demo test test-all parity kernels-check lab lint lock clean

help:
	@echo 'make demo       train and compare four architectures; ends with runs/phonebook/report.html'
	@echo 'make test       the tests, one case of everything (JOBS=2 processes)'
	@echo 'make test-all   the rest: slow tests, the normal ones with the oldest JAX and all extras, GPU kernels; writes $(RECORD)'
	@echo 'make parity TORCH=PYTHON  checkpoints against transformers, with a Python that has torch and transformers'
	@echo 'make kernels-check  compile the GPU kernels for an H100, without one, and hold them to their budgets'
	@echo 'make lab        JupyterLab at notebooks/start.ipynb'
	@echo 'make lint       formatting, lint, and no outputs in notebooks'
	@echo 'make setup      only set up (CUDA=13: for NVIDIA GPUs; PYTHON=...: with this Python >= 3.12)'
	@echo 'make lock       renew the locks from pyproject.toml'
	@echo 'make clean      remove environments and caches; runs/ stays'

setup:
	@./setup.sh

demo: setup
	$(BIN)/workbench run experiments/phonebook.py

test: setup
	$(QUICK) $(BIN)/$(PYTEST) -m 'not slow'

test-all: setup
	./setup.sh minimum
	rm -f $(RECORD)
	$(QUICK) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow --record=$(RECORD)
	.venv-minimum/bin/$(PYTEST) -m 'not slow or ray' --record=$(RECORD)
	$(MAKE) kernels-check

parity: setup
	$(BIN)/python tests/exchange/parity.py $(or $(TORCH),$(error make parity TORCH=PYTHON: give a Python that has torch and transformers)) .cache/parity

# The environment of its own, about 1 GB, holds what exists for Linux alone.
kernels-check:
ifeq ($(shell uname),Linux)
	./setup.sh sm90a
	.venv-sm90a/bin/python kernels/compile_check.py --json benchmarks/results/kernels_sm90a.json
else
	@echo 'kernels-check needs Linux: left out'
endif

lab: setup
	$(BIN)/jupyter lab notebooks/start.ipynb

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

# uv.lock records index addresses, so it is no part of the repository; its exports hold hashes alone.
define export
{ echo "# Made by \`make lock\`: $(1)." && $(UV) export $(EXPORT) $(3); } >$(2).new && mv $(2).new $(2)
endef

lock: setup
	rm -f uv.lock
	$(UV) lock --quiet
	$(call export,the newest versions that pyproject.toml allows,requirements.lock)
	$(call export,what \`make setup CUDA=13\` adds to requirements.lock,requirements-cuda13.lock,--only-group cuda13)
	$(call export,what \`make kernels-check\` compiles the GPU kernels with,requirements-sm90a.lock,--only-group sm90a)
	$(UV) lock --quiet --upgrade-package jax==$(MINIMUM_JAX) --upgrade-package jaxlib==$(MINIMUM_JAX)
	$(call export,requirements.lock with the oldest JAX and the extras lm-eval and ray and the group lm-eval-tasks for \`make test-all\`,requirements-minimum.lock,--extra lm-eval --extra ray --group lm-eval-tasks)

clean:
	rm -rf .venv .venv-* .cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
