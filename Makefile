# Everything that a fresh clone needs: `make demo`, `make test`.
#
# Wants Python 3.11 or newer with venv, and make; no compiler. Another Python:
#   make demo PYTHON=python3.12
# An environment of your own instead of .venv:
#   make test VENV=/path/to/venv

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
TESTS ?= tests
CLIP ?= demo/clip.mp4
DEMO_OUTPUT ?= out/demo

BIN := $(VENV)/bin
ESLINT := .cache/eslint/node_modules/.bin/eslint
PIP_INSTALL := $(BIN)/python -m pip install --quiet --prefer-binary \
  --disable-pip-version-check --no-input

# Compiled code is kept between runs.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo docs check-gpu lint lint-js format test test-slow test-sweep test-long clean

help: ## Show this list.
	@awk -F ': .*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' \
	  $(firstword $(MAKEFILE_LIST))

venv: $(VENV)/.programs ## Make .venv with what the programs need.

demo: $(VENV)/.programs ## Turn the shipped clip into a mesh sequence.
	$(BIN)/python -m launch.sample --config=configs/small.py --input=$(CLIP) \
	  --output=$(DEMO_OUTPUT)
	@echo
	@echo "Done. Open $(DEMO_OUTPUT)/viewer.html in a browser."

check-gpu: $(VENV)/.programs ## Check a GPU in ten minutes; see launch/check_gpu.sh.
	PYTHON=$(BIN)/python launch/check_gpu.sh $(CHECK_GPU_FLAGS)

lint: $(VENV)/.tests ## Check form: formatter and linter, nothing is changed.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory lint-js

# The viewer's scripts. Without npm, or where npm cannot fetch ESLint, this says
# so and passes.
lint-js:
	@if ! command -v npm >/dev/null; then \
	  echo "No npm: the viewer's scripts are not linted."; \
	elif ! test -x $(ESLINT) && ! npm install --silent --no-audit --no-fund \
	    --no-save --prefix .cache/eslint eslint@9 @eslint/js@9 globals \
	    >/dev/null 2>&1; then \
	  echo "npm cannot fetch ESLint: the viewer's scripts are not linted."; \
	else \
	  $(ESLINT) . && echo "ESLint: the viewer's scripts are in order."; \
	fi

format: $(VENV)/.tests ## Format the code and mend what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Most of their time is compilation, of programs that run once: not optimised,
# the networks' tests take half of it, and half of that without XLA's emitters of
# fusions. jax ends at a flag that it does not know, as 0.12 this one.
QUICK_COMPILES := --xla_backend_optimization_level=0
QUICKER_COMPILES := $(QUICK_COMPILES) --xla_cpu_use_fusion_emitters=false

test: $(VENV)/.tests ## Run the everyday tests.
	@if [ -z "$${XLA_FLAGS+set}" ]; then \
	  export XLA_FLAGS="$(QUICKER_COMPILES)"; \
	  $(BIN)/python -c 'import jax; jax.devices()' >/dev/null 2>&1 \
	    || export XLA_FLAGS="$(QUICK_COMPILES)"; \
	fi; \
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow" \
	  --durations=10 $(TESTS)

test-slow: $(VENV)/.tests ## Run the tests that take minutes or extra tools.
	$(BIN)/python -m pytest -q -m "slow and not sweep and not long" -x --durations=10 $(TESTS)

test-sweep: $(VENV)/.tests ## Run hundreds of sizes of kernels and networks: hours.
	$(BIN)/python -m pytest -q -n $(WORKERS) -m sweep -x $(TESTS)

test-long: $(VENV)/.tests ## Kill runs twenty times; move checkpoints between meshes.
	$(BIN)/python -m pytest -q -m long --durations=10 $(TESTS)

docs: $(VENV)/.docs ## Build the documentation site into build/site.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Done. Open build/site/index.html in a browser."

clean: ## Remove .venv, caches and demo output.
	rm -rf .venv .cache .pytest_cache build dist *.egg-info $(DEMO_OUTPUT)
	find . -name __pycache__ -type d -not -path './.git/*' -prune \
	  -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; say make PYTHON=python3.12," \
	    "for instance." >&2; exit 2; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "python3 -m venv failed; on Debian and Ubuntu install" \
	    "python3-venv." >&2; rm -rf $(VENV); exit 2; }

$(VENV)/.programs: requirements.txt | $(VENV)/bin/python
	@echo "Installing requirements.txt: about 1.2 GB, once; a minute or more."
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.tests: requirements-test.txt $(VENV)/.programs
	@echo "Installing what the tests need."
	@$(PIP_INSTALL) -r requirements-test.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.programs
	@echo "Installing what the documentation needs."
	@$(PIP_INSTALL) "mkdocs-material>=9.5" "mkdocstrings[python]>=0.26"
	@touch $@
