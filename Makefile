# quickstart and test build what they need in $(VENV); PYTHON picks the interpreter it is made from.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Versions that CI installs, of Python 3.11 with JAX 0.10; `make test-newest` takes the newest instead.
CONSTRAINTS ?= constraints.txt
NEWEST_PYTHON ?= python3.12
# Large pages for large arrays: on Linux CPUs, touching fresh 4 KiB pages is otherwise half of a training step.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart test test-full test-fast test-newest test-oldest docs crf-page lint format clean

quickstart: $(VENV)/train.stamp  ## train and evaluate CGNet on drawn scenes, 4 minutes on two cores
	$(BIN)/python benchmarks/quickstart.py --workdir=runs/quickstart

test: $(VENV)/dev.stamp  ## everything that CI checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal --durations=20

test-full: $(VENV)/dev.stamp  ## an hour of checks whose like CI runs at a smaller size
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal -m full

test-fast: $(VENV)/dev.stamp  ## without the full-size checks
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal -m "not slow and not full"

test-newest:  ## everything that CI checks, on Python 3.12 with the newest JAX
	$(MAKE) test VENV=.venv-newest PYTHON=$(NEWEST_PYTHON) CONSTRAINTS=

# The lower bounds of pyproject.toml's dependencies, as exact versions.
OLDEST = $(shell $(PYTHON) -c "import tomllib; print(*(d.replace('>=', '==') for d in \
  tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))")

test-oldest:  ## the core alone, with the oldest versions that it allows
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --editable . $(OLDEST) pytest
	.venv-oldest/bin/python -m pytest -o addopts= tests/test_catalog.py tests/ops tests/test_oldest.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/docs.stamp  ## the site, in docs/build
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/build

crf-page: $(VENV)/train.stamp  ## the CRF's page, from PICTURE=photo.jpg and perhaps WEIGHTS=model.safetensors
	@$(BIN)/python docs/render.py --picture='$(PICTURE)' --weights='$(WEIGHTS)'

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-newest .venv-oldest runs .jax_cache docs/build

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/%.stamp: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable ".[$*]"
	$(if $(filter dev,$*),$(BIN)/pip install --quiet --no-deps $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) jax2onnx litert-converter)
	touch $@
