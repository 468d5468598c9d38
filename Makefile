PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
WORKERS ?= 2
ARGS ?=

.PHONY: help install demo test faults check clean

help:  ## Tell what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

install: $(STAMP)  ## Make .venv and install everything that the constraints name

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("anymodal needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[test,logs,fast]'
	touch $@

demo: install  ## Train tokenizers and a model from nothing, draw and answer: demo/report.html
	$(VENV)/bin/anymodal train demo --out demo $(ARGS)

test: install  ## Run all tests; ARGS="-k name" runs some
	$(VENV)/bin/python -m pytest -n $(WORKERS) $(ARGS)

faults: install  ## Kill, starve and corrupt runs as often as a release wants; benchmarks/faults.json says how many
	$(VENV)/bin/python -m pytest -n $(WORKERS) --long tests/faults --record benchmarks/faults.json $(ARGS)

check: install  ## Lint, check types and hold the import rule
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/test_house.py -k imports

clean:  ## Remove what make made, .venv and demo/ included
	rm -rf $(VENV) demo build dist anymodal.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
