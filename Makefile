# Thin: the work is in the package and in pytest. `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint install clean

demo: install
	$(BIN)/fewstep demo --out runs/demo

test: install
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/installed

# torch first and alone: plain `torch`, or a range, would bring gigabytes of CUDA to a machine without a GPU. Of thousands of modules few are
# imported, and those are compiled then
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -c constraints.txt torch
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv runs
