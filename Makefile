# Every verb first builds .venv with the exact versions of .ci/constraints.txt; nothing else need be installed.
PROFILE ?= sample
PARAMS ?=
SETS ?=

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.stamp

export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport MPLBACKEND PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help report pages test lab data results bench lint clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

report: $(STAMP) ## execute every notebook into build/report/ [PROFILE=sample|paper|train] [PARAMS="-p DEVICE cuda"]
	@$(if $(filter paper train,$(PROFILE)),$(PYTHON) -m n2s_utils.report.download)
	@$(PYTHON) -m n2s_utils.report --profile $(PROFILE) $(PARAMS)

pages: $(STAMP) ## the report as it was recorded, as web pages in build/report/, in seconds
	@$(PYTHON) -m n2s_utils.report --recorded

# All parts run, whatever the first says; nbval executes each notebook once, with the sample parameters.
test: $(STAMP) ## run lint, pytest, then nbval over every notebook in the sample profile
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	MPLBACKEND=Agg $(PYTHON) -m pytest || status=1; \
	rm -rf build/nbval; \
	$(PYTHON) -m n2s_utils.report --prepare build/nbval && \
	$(PYTHON) -m pytest --nbval-lax --nbval-current-env build/nbval/*.ipynb || status=1; \
	exit $$status

lab: $(STAMP) ## open the notebooks in JupyterLab
	@$(PYTHON) -m jupyter lab notebooks

data: $(STAMP) ## download and verify the image sets into data/downloads/ [SETS="Kodak24 Set12"]
	@$(PYTHON) -m n2s_utils.report.download $(SETS)

results: $(STAMP) ## rewrite the README's tables from data/results/
	@$(PYTHON) -m n2s_utils.report.readme

bench: $(STAMP) ## time training and inference on this machine
	@$(PYTHON) -m n2s_utils.report.bench

lint: $(STAMP) ## check code and notebooks with ruff, the types of n2s_utils with mypy
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check --quiet || { echo "error: unformatted files; run $(PYTHON) -m ruff format" >&2; exit 1; }
	@$(PYTHON) -m mypy

clean: ## remove .venv, caches and build/, but for the checkpoints in build/runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
	if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} +; fi

$(STAMP): pyproject.toml .ci/constraints.txt
	@for python in python3.11 python3.12 python3 none; do \
	    $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && break; \
	done; \
	if [ $$python = none ]; then echo "error: no Python 3.11 or 3.12 on the PATH: install one and run make again" >&2; exit 1; fi; \
	echo "building $(VENV) (about 1.6 GB) ..."; \
	$$python -m venv --clear $(VENV)
	@$(PYTHON) -m pip install --quiet --constraint .ci/constraints.txt --editable .
	@touch $@
