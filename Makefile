# quickstart and test build what they need in .venv; PYTHON picks the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin
# Large pages for large arrays: on Linux CPUs, touching fresh 4 KiB pages is otherwise half of a training step.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart test test-full test-fast docs lint format clean

quickstart: .venv/train.stamp  ## train and evaluate CGNet on drawn scenes, 4 minutes on two cores
	$(BIN)/python benchmarks/quickstart.py --workdir=runs/quickstart

test: .venv/dev.stamp  ## everything that CI checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

test-full: .venv/dev.stamp  ## an hour of checks whose like CI runs at a smaller size
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal -m full

test-fast: .venv/dev.stamp  ## without the full-size checks
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal -m "not slow and not full"

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: .venv/train.stamp  ## the CRF's page, from PICTURE=photo.jpg and perhaps WEIGHTS=model.safetensors
	@$(BIN)/python docs/render.py --picture='$(PICTURE)' --weights='$(WEIGHTS)'

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs .jax_cache docs/build

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/%.stamp: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable ".[$*]"
	touch $@
