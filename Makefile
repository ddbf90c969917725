# Thin: the work is in the package and in pytest. `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin
# some images tell Python to keep no compiled modules: each process of the tests would compile torch anew, for ten seconds and more
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint docs build matrix install clean

demo: install
	$(BIN)/fewstep demo --out runs/demo

test: install
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# dist/: the archive of the sources, the wheel that it makes, and what the package index says of both
build: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

# the quick part of the tests with the lowest versions of pyproject.toml and with the newest, each in an environment of its own in .matrix/
matrix: install
	$(BIN)/python tools/matrix.py

# the pages of docs/ in site/: every warning, such as a link that leads nowhere, is an error
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

install: .venv/installed

# torch first and alone: plain `torch`, or a range, would bring gigabytes of CUDA to a machine without a GPU. Of sixteen thousand modules
# those are compiled that are imported
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -c constraints.txt torch
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -c "import fewstep.run, fewstep.evaluation, diffusers.models.unets"
	touch $@

clean:
	rm -rf .venv .matrix dist runs site
