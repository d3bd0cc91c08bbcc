# `make demo` and `make test` need nothing but Python 3.11, git and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
DATA ?=
WORKERS ?= 2
NAMES ?=

.DEFAULT_GOAL := help
.PHONY: help demo quickstart test test-oldest lint types format bench docs clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# A virtual environment for each of the two version sets: .venv (newest) and .venv-oldest.
# uv is bootstrapped with pip, so that a machine without it is enough.
define make_venv
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --constraint $(2) uv
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --constraint $(2) --editable '.[checkpoint,examples,dev,docs]'
	touch $@
endef

.venv/.done: pyproject.toml constraints/newest.txt
	$(call make_venv,.venv,constraints/newest.txt)

.venv-oldest/.done: pyproject.toml constraints/oldest.txt
	$(call make_venv,.venv-oldest,constraints/oldest.txt)

demo: .venv/.done  ## Train without and with task conditioning; print and plot the difference. DATA=path: on your dataset.
	.venv/bin/python -m examples.pi0.demo $(if $(DATA),--data $(DATA))

quickstart: .venv/.done  ## The same for the policy of examples/quickstart.py, on states and actions alone.
	.venv/bin/python -m examples.quickstart $(if $(DATA),--data $(DATA))

test: .venv/.done  ## Run the tests on the newest jax and flax.
	.venv/bin/python -m pytest -n $(WORKERS)

test-oldest: .venv-oldest/.done  ## Run the same tests on jax 0.5.3 and flax 0.10.2.
	.venv-oldest/bin/python -m pytest -n $(WORKERS)

lint: .venv/.done  ## Check style, formatting, and the imports between packages.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo

types: .venv/.done  ## Check types.
	.venv/bin/pyright

format: .venv/.done  ## Format the code.
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/.done  ## Measure, and write benchmarks/RESULTS.md. NAMES=overhead: only that.
	.venv/bin/python -m benchmarks $(NAMES)

docs: .venv/.done  ## Build the documentation into docs/_build.
	.venv/bin/sphinx-build -W -q -b html docs docs/_build

clean:  ## Remove what the other targets made.
	rm -rf .venv .venv-oldest docs/_build runs .pytest_cache .ruff_cache
