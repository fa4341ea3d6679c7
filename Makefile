# The commands of this repository; `make` alone lists them.
#   PYTHON=python3.12   which Python (3.11 or newer) makes the environment
#   VENV=.venv          where the environment is
#   PORT=8000           HTTP port of the demo
#   SGLANG_VENV=folder  where the environment of test-sglang is
#   INSTALL_VENV=folder where the environment of test-install is
#   ONCE=1              the demo stops after the answer
#   PER_TASK=100        questions a task in `evaluate`
#   MODEL=folder        test-compose serves this model instead of the bundled one

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
# An environment that is there stays in use; it is made anew only for another PYTHON.
PYTHON ?= $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,python3)
BIN := $(VENV)/bin
PINS := constraints-cpu.txt
# The stamps carry what was installed from, so that a changed pin installs again and nothing else does.
SHOW_VERSION := import sys; print("%d.%d" % sys.version_info[:2])
VERSION := $(shell $(PYTHON) -c '$(SHOW_VERSION)' 2>&1)
HASH := $(VERSION)-$(shell cat pyproject.toml $(PINS) | cksum | cut -d' ' -f1)
RUNTIME := $(VENV)/.runtime-$(HASH)
DEVELOP := $(VENV)/.develop-$(HASH)
TRAIN := $(VENV)/.train-$(HASH)

SGLANG_VENV ?= .venv-sglang
SGLANG_PINS := constraints-sglang-cpu.txt
SGLANG := $(SGLANG_VENV)/.installed-$(VERSION)-$(shell cksum < $(SGLANG_PINS) | cut -d' ' -f1)

INSTALL_VENV ?= .venv-install
INSTALLED := $(INSTALL_VENV)/.alone-$(HASH)

.PHONY: help install environments demo test test-install test-sglang test-compose test-multinode lint evaluate clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

install: $(RUNTIME) ## make the environment that `demo` and `triptych` need
	@echo "$(BIN)/triptych is ready"

environments: $(DEVELOP) $(SGLANG) $(INSTALLED) ## make those of the tests; with -j2 side by side

demo: $(RUNTIME) ## start everything, ask about a picture, show the way the request took
	@exec $(BIN)/triptych demo $(if $(PORT),--port $(PORT)) $(if $(ONCE),--once)

test: lint ## lint, types and tests; CI runs this and every test-… below (docs/testing.md)
	@$(BIN)/pytest

# This checkout's code, wherever the environment's own link leads: the folder can serve many, as it does in CI.
test-install: $(INSTALLED) ## every command once, in an environment made by `make install` alone (1.5 GB)
	@PYTHONPATH=$(CURDIR) $(INSTALL_VENV)/bin/python -m tests.install.run

test-compose: $(DEVELOP) ## docker-compose.yml, built, asked, hurt and taken away; brings a Docker engine if none runs
	@$(BIN)/python tests/compose/run.py $(if $(MODEL),--model $(MODEL))

# Only SGLANG_VENV's packages are used, and this checkout's code: the folder can serve many, as it does in CI.
test-sglang: $(SGLANG) ## the SGLang engine on a CPU, in an environment of its own (3 GB)
	@PYTHONPATH=$(CURDIR)/tests/engines_sglang/stubs:$(CURDIR) OMP_NUM_THREADS=1 \
	  $(SGLANG_VENV)/bin/python -m pytest --durations=10 tests/engines_sglang

test-multinode: $(DEVELOP) ## three hosts as network namespaces, NIXL over TCP between them; as root
	@[ "$$(id -u)" = 0 ] || { echo "namespaces need root: sudo make test-multinode"; exit 1; }
	@TRIPTYCH_MULTINODE=1 $(BIN)/pytest -s tests/nodes/test_multinode.py

lint: $(DEVELOP) ## ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

evaluate: $(TRAIN) ## measure the bundled model again (minutes; needs npm and libcairo2)
	@$(BIN)/python -m models.train.evaluate --per-task $(or $(PER_TASK),100)

clean: ## remove the environment, caches and what a stack left
	rm -rf $(VENV) $(SGLANG_VENV) $(INSTALL_VENV) .triptych .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Triptych needs Python 3.11 or newer, and $(PYTHON) is not: give one with PYTHON=python3.12"; exit 1; }
	@[ "$$($(BIN)/python -c '$(SHOW_VERSION)' 2>&1)" = "$(VERSION)" ] || \
	  { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing into $(VENV) (minutes the first time, most of it torch)"
	@$(BIN)/python -m pip install -c $(PINS) -e '.[transformers]'
	@touch $@

$(SGLANG):
	@echo "installing SGLang for CPUs into $(SGLANG_VENV) (minutes)"
	@rm -f $(SGLANG_VENV)/.installed-*
	@{ $(PYTHON) -m venv --clear $(SGLANG_VENV) && \
	  $(SGLANG_VENV)/bin/python -m pip install --no-deps -r $(SGLANG_PINS) && touch $@; } || \
	  { echo "no environment for SGLang: it needs 3 GB in $(SGLANG_VENV), and the packages of $(SGLANG_PINS)"; exit 1; }

# Anew for each change of the pins: what an older one had installed must not be found.
$(INSTALLED):
	@rm -rf $(INSTALL_VENV)
	@$(MAKE) VENV=$(INSTALL_VENV) PYTHON=$(PYTHON) install
	@touch $@

$(DEVELOP): $(RUNTIME)
	@echo "installing the tools for tests into $(VENV)"
	@$(BIN)/python -m pip install -c $(PINS) -e '.[transformers,dev]'
	@touch $@

$(TRAIN): $(RUNTIME)
	@echo "installing what draws pictures for measuring into $(VENV)"
	@$(BIN)/python -m pip install -c $(PINS) -e '.[transformers,train]'
	@touch $@
