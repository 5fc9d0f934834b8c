# An index of commands; each works without make.
.DEFAULT_GOAL := help
.PHONY: coverage lane bench overload slow soak many help setup quickstart test unit lint format types imports serve clean

PYTHON := .venv/bin/python

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with the pinned packages
	bash -c 'set -euo pipefail; source scripts/env.sh; ensure_venv'

quickstart: ## train, serve and promote on embedded stores
	scripts/quickstart.sh

test: ## lint, types, import contracts, and all tests but the long ones
	scripts/test.sh

coverage: ## the same with branch coverage
	COVERAGE=1 scripts/test.sh

unit: ## the tests that start no server
	$(PYTHON) -m pytest -m 'not e2e and not slow'

soak: ## two hundred promotions under load (two minutes); SOAK_SWAPS=1000 for more
	$(PYTHON) -m pytest -m slow -s tests/test_soak.py

many: ## thirty models under a budget for ten, a minute of random traffic; prints memory and statuses
	$(PYTHON) -m pytest -m '' -s tests/test_many_models.py

slow: ## all long tests: crashes and hangs, models on demand, the soak, the image's install steps (half an hour, network)
	$(PYTHON) -m pytest -m slow

lane: ## two hundred thousand mixed, partly abandoned requests: nobody is answered with another's rows
	$(PYTHON) -m pytest -m slow tests/serving/test_lane.py

bench: ## beside KServe's SDK, mlflow, Ray Serve and a bare protocol (an hour; ARGS="--peers all" for more); needs wrk
	$(PYTHON) -m scripts.bench $(ARGS)

overload: ## three times the capacity: what is answered, what is shed, who else feels it; needs wrk
	$(PYTHON) -m scripts.overload

lint: ## ruff: rules and format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check -q .

format: ## let ruff rewrite what it can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types: ## mypy, strict
	$(PYTHON) -m mypy

imports: ## the directions of the packages
	.venv/bin/lint-imports --config setup.cfg

serve: ## headway serve $(ARGS), for example ARGS="--model-uri models:/fraud@champion"
	$(PYTHON) -m serving.cli serve $(ARGS)

clean: ## remove caches and what the quickstart made; .venv stays
	rm -rf .quickstart .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov build dist
