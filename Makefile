# From nothing but python3 and make to a trained model: `make train`.
#
# Everything happens in VENV, which is made on first use. To work in an environment that you have prepared, say so:
#     make test VENV= PY=python
# Which registry packages come from is the business of your pip and uv settings; nothing here touches them.

PY ?= python3
VENV ?= .venv
ARGS ?=
TIER ?= smoke
MINUTES ?= 25

ifeq ($(strip $(VENV)),)
  PYTHON := $(PY)
  READY :=
  READY_DEV :=
  READY_DOCS :=
else
  PYTHON := $(VENV)/bin/python
  READY := $(VENV)/.installed
  READY_DEV := $(VENV)/.installed-dev
  READY_DOCS := $(VENV)/.installed-docs
endif

# Where bytecode is switched off, as in many containers, every process would compile the program anew.
export PYTHONDONTWRITEBYTECODE :=

INSTALL = $(PYTHON) -m uv pip install --quiet --python $(PYTHON) --constraint constraints.txt --editable .

.DEFAULT_GOAL := help
.PHONY: help train mnist methods cpu-table collapse-table test test-slow test-faults lint docs gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Twice the data set's batch and rate: on two cores the second thread pays, and training takes two thirds of the time.
train: $(READY) ## train TRADES on digits, evaluate it, write a report (ARGS="seed=1 ..." to change it)
	$(PYTHON) -m atbench train method=trades train.batch_size=64 train.optimizer.lr=0.1 $(ARGS)

mnist: $(READY) ## train PGD-AT on real MNIST and attack it (the figures of the README; images from data/ or the network)
	$(PYTHON) -m atbench train experiment=mnist_pgd_at $(ARGS)

methods: $(READY) ## train every method on digits and write the table of docs/methods.md (goes on where it was stopped)
	$(PYTHON) -m scripts.methods_table $(ARGS)

cpu-table: $(READY) ## train every method on MNIST at 14x14 and write the first table of docs/cpu.md (goes on where it was stopped)
	$(PYTHON) -m scripts.cpu_table $(ARGS)

collapse-table: $(READY) ## train methods where FGSM training collapses, write the second table of docs/cpu.md
	$(PYTHON) -m scripts.collapse_table $(ARGS)

repro-%: $(READY) ## repro-table1, repro-fastat, repro-ladder or repro-METHOD, TIER=smoke|short|paper (docs/reproduction.md)
	$(PYTHON) -m scripts.repro $* --tier $(TIER) $(ARGS)

test: $(READY_DEV) ## run the quick tests: of methods, the changed ones and a sample of the day's (ARGS=--all-methods: all)
	$(PYTHON) -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: $(READY_DEV) ## run the tests that train for real or compare with other tools; every method, every attack in every norm
	$(PYTHON) -m pytest -n 2 --dist worksteal -m "slow or every_method or every_pair" $(ARGS)

test-faults: $(READY_DEV) ## run the tests that kill runs, fill disks and damage files
	$(PYTHON) -m pytest -m faults $(ARGS)

lint: $(READY_DEV) ## check style, format and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

docs: $(READY_DOCS) ## write the documentation as a site to site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict $(ARGS)

gpu: $(READY_DEV) ## acceptance on a CUDA machine in MINUTES=25; again to go on (docs/gpu.md)
	$(PYTHON) scripts/gpu_acceptance.py --minutes $(MINUTES) $(ARGS)

clean: ## remove the environment, build products and caches; runs/ stays
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache
	find atbench tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/uv:
	@$(PY) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PY) cannot make environments: ensurepip is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $(PY) is $$($(PY) -V), atbench needs Python 3.11, 3.12 or 3.13; make ... PY=python3.12" >&2; exit 1; }
	@echo "making $(VENV): several GB with a CUDA build of torch, and some minutes on the first time"
	test -x $(PYTHON) || $(PY) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet uv

$(VENV)/.installed: $(VENV)/bin/uv pyproject.toml constraints.txt
	$(INSTALL)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --group dev --compile-bytecode  # tests start many processes
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --group docs
	@touch $@
