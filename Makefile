# Everything is set up by the target that needs it; `make help` lists them.

# The first of these that the archiver can use, or python3, which then says what is wrong.
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
ifndef PYTHON
PYTHON := $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(USABLE)' 2>/dev/null && echo $$p && break; done),python3)
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(VERSION)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help python setup services lint test demo bench format clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '  make %-16s %s\n' "$$name" "$$text"; done
	@echo '  PYTHON=python3.12 chooses the Python, ARCHIVER_CACHE the folder of the services.'

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) is missing or older than 3.11: make PYTHON=... names another."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module: install it (Debian: python3-venv)."; exit 1; }

setup: $(READY)  ## the archiver and its tools in .venv

$(READY): pyproject.toml constraints/archiver.txt | python
	@echo "Setting up $(VENV) with Python $(VERSION)"
	$(BIN)/python$(VERSION) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c constraints/archiver.txt -e '.[test,dev]'
	@touch $@

services: $(READY)  ## Synapse, Swift, nginx, Caddy, Chromium for the tests, outside the checkout
	@$(BIN)/python tools/setup_services.py

lint: $(READY)  ## what must hold before a commit: ruff, mypy, the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) lint services  ## lint and every test, against real servers; ARGS='-k word' for some
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

demo: $(READY)  ## the archiver beside a Synapse, to look at; ONCE=1 ends when it has shown all
	$(BIN)/python -m demo $(if $(ONCE),--once)

bench: $(READY)  ## measure; BENCH='...' chooses what
	$(BIN)/python -m bench $(BENCH)

format: $(READY)  ## let ruff put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove .venv and the tools' caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist .demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
