# The targets that people and scripts rely on; `make help` lists them.
# Everything runs in .venv, which the first target that needs it makes.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed

# Larger datasets than those that packages bring; tests that want them skip without.
ifneq ($(wildcard ../shared/data),)
export FACTORY_TEST_DATA ?= $(realpath ../shared/data)
endif

# One module of bench/ for each claim, docs/benchmark.md tells of them; results go to bench/results/.
CLAIMS ?= start demo fit_minute one_row one_latency segments transfer refit_cost planted time_order odd_tables scaling \
	batch streams serving serving_peers online_features serving_faults zipf promotion admission_scale controller_scale turnaround submit pages fairness quote_calibration ablation \
	canaries

.PHONY: help demo up down test check pictures bench bench-automl

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(INSTALLED)  ## Run the main job end to end on the embedded default
	$(BIN)/factory demo

up: $(INSTALLED)  ## Start Ray, MLflow, controller, portal and predictor; print their URLs
	$(BIN)/factory up

down: $(INSTALLED)  ## Stop what `make up` started
	$(BIN)/factory down

# Those that start Ray, MLflow or Serve one after the other, since each of them takes the whole machine.
# What fails is told, and run once more in a process of its own: only what fails there as well fails the target.
ONCE_MORE = test $$? = 1 && $(BIN)/python -m pytest --last-failed --last-failed-no-failures=none

test: check  ## Run the checks and all tests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal || { $(ONCE_MORE) -m "not slow"; }
	$(BIN)/python -m pytest -m slow || { $(ONCE_MORE) -m slow; }

check: $(INSTALLED)  ## ruff, mypy, import-linter, docs checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_docs*.py

pictures: $(INSTALLED)  ## Take a picture of every page of the portal, in both themes and widths, into docs/pictures
	$(BIN)/python -m tests.browser.pictures

bench: $(INSTALLED)  ## Run the benchmarks for some hours; CLAIMS="planted segments" runs some
	failed=""; for claim in $(CLAIMS); do echo "== $$claim"; $(BIN)/python -m bench.$$claim || failed="$$failed $$claim"; done; \
	test -z "$$failed" || { echo "Not met:$$failed"; exit 1; }

bench-automl: $(INSTALLED)  ## Compare with other AutoML systems for some hours, and write docs/benchmark.md
	$(BIN)/python -m bench.peers.install
	failed=""; $(BIN)/python -m bench.automl --budget 60 --seeds 0 1 || failed="$$failed 60s"; \
	$(BIN)/python -m bench.automl --budget 300 --seeds 0 || failed="$$failed 300s"; \
	$(BIN)/python -m bench.automl --report && test -z "$$failed" || { echo "Not met:$$failed"; exit 1; }

# The stamp is newer than what it was made from, so a second run installs nothing.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
