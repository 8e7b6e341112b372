# Two commands are all a newcomer needs: `make demo` and `make test`. Each builds .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench docs format clean

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/expost demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --durations=15

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/house.py

bench: $(STAMP)
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/densities.py
	$(BIN)/python benchmarks/train_vs_pythae.py
	$(BIN)/python benchmarks/resume_kills.py
	$(BIN)/python benchmarks/hostile_files.py
	$(BIN)/python benchmarks/optimal_decoder.py
	$(BIN)/python benchmarks/dimension.py
	$(BIN)/python benchmarks/metrics.py $(if $(PRD_REFERENCE),--prd-reference $(PRD_REFERENCE))
	$(BIN)/python benchmarks/likelihood.py --data $(or $(MNIST),mnist)

docs: $(STAMP)
	$(BIN)/python docs/make.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
