# Everything below needs only Python 3.11 or newer: the first target run makes .venv and installs what it needs.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint format wheel

help:  ## what can be made
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

$(INSTALLED): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	  for python in $(PYTHON) python3.11 python3 python; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	    python=; \
	  done; \
	  if [ -z "$$python" ]; then echo "make: no Python 3.11 or newer found; name one with PYTHON=/path/to/python" >&2; exit 2; fi; \
	  echo "making $(VENV) with $$($$python --version)"; \
	  $$python -m venv $(VENV); \
	fi
	@echo "installing moe-zoo and the tested versions of what it needs (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(INSTALLED)  ## train a small Time-MoE on real series, then evaluate it
	@rm -rf runs/demo
	$(BIN)/zoo train time_series/time_moe_tiny --out runs/demo
	$(BIN)/zoo eval runs/demo/time_series/time_moe_tiny
	@echo "  zoo train time_series/time_moe_tiny data=csv data.path=FILE"
	@echo "  zoo list        (first: . $(VENV)/bin/activate)"

test: lint  ## linters, then the tests
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## ruff, the format check and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(INSTALLED)  ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(INSTALLED)  ## wheel and sdist in dist/
	$(BIN)/python -m build
