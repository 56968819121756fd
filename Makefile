# Everything runs in .venv, made from requirements.lock. `make demo` and `make test` need nothing else.
PYTHON ?= python3.11
SHELL := bash
.SHELLFLAGS := -o pipefail -c
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo up down test bench chaos lint ui lock clean help
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

demo: .venv/made ## train, score and promote a DP-GAN on procedural scenes (some 10 minutes on 2 cores)
	dvc repro
	@dpgan summary

test: .venv/made ## all tests, a file at a time in two processes
	pytest -n 2 --dist loadfile --no-loadscope-reorder  # the longest first (tests/conftest.py)

up: .venv/made ## Prefect, MLflow and a worker on this machine (PREFECT_PORT=N, MLFLOW_PORT=N)
	python infra/services.py up $(addprefix --prefect-port ,$(PREFECT_PORT)) $(addprefix --mlflow-port ,$(MLFLOW_PORT))

down: .venv/made ## end them
	python infra/services.py down

bench: .venv/made ## what this code costs beside references, on one core (some 20 minutes; SUITE=inference: one of them)
	python -m benchmarks $(SUITE)

chaos: .venv/made ## injects faults and checks what is promised (docs/reliability.md; FAULTS="1 14": these alone)
	cd infra && python -m chaos $(FAULTS)

lint: .venv/made ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

ui: .venv/made ## the MLflow UI on http://127.0.0.1:5000
	dpgan ui

lock: ## requirements.lock from pyproject.toml; what is pinned stays (UPGRADE=--upgrade: the newest of all; needs uv)
	cp requirements.lock requirements.lock.new  # uv keeps the versions that it finds there
	uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-emit-find-links --no-header \
	  --annotation-style line -q $(UPGRADE) -o requirements.lock.new > /dev/null
	{ echo '# Exact versions of everything; made from pyproject.toml by `make lock`.'; \
	  echo '# Install with --no-deps: some wheels name ancient versions of torch that they do not need.'; \
	  cat requirements.lock.new; } > requirements.lock
	rm requirements.lock.new

clean: ## what the pipeline made, but not the environment
	rm -rf build runs mlruns .prefect data/toyscapes/raw

.venv/made: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo 'error: Python 3.11 is needed; name it: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@echo 'environment: downloading and installing the packages of requirements.lock (some 7 GB, a few minutes)'
	.venv/bin/pip install --disable-pip-version-check --progress-bar off --no-deps -r requirements.lock | \
	  awk '/^Collecting/ {n++; if (n % 25 == 0) print "environment: " n " packages collected"; fflush()} /^(Installing|Successfully)/ {print substr($$0, 1, 100) "..."; fflush()}'
	.venv/bin/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	.venv/bin/python -c 'from pathlib import Path; from dpgan.data.versions import use_private_cache; from dpgan.environment import quiet_environment; quiet_environment(); use_private_cache(Path())'
	@touch $@
