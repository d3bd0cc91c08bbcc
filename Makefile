# `make demo` and `make test` need nothing but Python 3.11 or newer, git and make.

# Prints the first of some versions of Python that runs, on the PATH or under pyenv.
find_python = $(shell for v in $(1); do for p in python$$v \
	"$$(pyenv root 2>/dev/null)"/versions/$$v.*/bin/python; do \
	"$$p" -c '' 2>/dev/null && echo "$$p" && exit; done; done)
PYTHON ?= $(call find_python,3.13 3.12 3.11)
PYTHON_3_11 ?= $(call find_python,3.11)
DATA ?=
WORKERS ?= 2
NAMES ?=
comma := ,
ALL := checkpoint$(comma)metaworld$(comma)training$(comma)dev$(comma)docs

# Compiling takes most of the tests' time. The middle set compiles as users do.
FAST := XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# A file's tests run in one process, which compiles once what they share.
PYTEST := -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo demo-pi0 quickstart test test-middle test-oldest lint types format bench docs clean

help:  ## List the targets.
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# A virtual environment for each of the three version sets: .venv (newest), -middle and -oldest.
# uv is bootstrapped with pip, so that a machine without it is enough.
# $(1): the folder; $(2): the Python; $(3): the extras; $(4): the versions
define make_venv
	$(if $(2),,$(error Python was not found. Install 3.11, 3.12 or 3.13, or pass PYTHON=path))
	$(2) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --constraint $(4) uv
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --constraint $(4) --editable '.[$(3)]'
	touch $@
endef

.venv/.done: pyproject.toml constraints/newest.txt
	$(call make_venv,.venv,$(PYTHON),$(ALL),constraints/newest.txt)

.venv-middle/.done: pyproject.toml constraints/middle.txt
	$(call make_venv,.venv-middle,$(PYTHON_3_11),checkpoint$(comma)dev,constraints/middle.txt)

.venv-oldest/.done: pyproject.toml constraints/oldest.txt
	$(call make_venv,.venv-oldest,$(PYTHON_3_11),$(ALL),constraints/oldest.txt)

demo: .venv/.done  ## A robot that confuses ten tasks learns to do the one that it is told. In simulation.
	@echo "A robot in simulation learns ten tasks without ids, then with them: about 4 minutes on two cores."
	.venv/bin/python -m examples.metaworld.demo

demo-pi0: .venv/.done  ## Train a tiny π0.5 without and with task ids; plot the difference. DATA=path: on your dataset.
	@echo "A tiny π0.5 is trained without ids, then with them, and both are compared: some minutes on two cores."
	.venv/bin/python -m examples.pi0.demo $(if $(DATA),--data $(DATA))

quickstart: .venv/.done  ## Train the policy of examples/quickstart.py without and with task ids. DATA=path, too.
	@echo "A small policy is trained without ids, then with them: some minutes on two cores."
	.venv/bin/python -m examples.quickstart $(if $(DATA),--data $(DATA))

test: .venv/.done  ## Run the tests on the newest jax and flax that this Python allows.
	@echo "The tests on the newest jax and flax: about 10 minutes on two cores."
	$(FAST) .venv/bin/python $(PYTEST)

test-middle: .venv-middle/.done  ## Run the library's tests on jax 0.7.2 and flax 0.11.2.
	@echo "The tests of the library on jax 0.7.2 and flax 0.11.2: about 3 minutes on two cores."
	.venv-middle/bin/python $(PYTEST)

test-oldest: .venv-oldest/.done  ## Run the same tests on jax 0.5.3 and flax 0.10.2.
	@echo "The same tests on jax 0.5.3 and flax 0.10.2: about 8 minutes on two cores."
	$(FAST) .venv-oldest/bin/python $(PYTEST)

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
	@echo "All benchmarks, which takes long; with NAMES= only those."
	.venv/bin/python -m benchmarks $(NAMES)

docs: .venv/.done  ## Build the documentation into docs/_build.
	@echo "The pages of docs: less than a minute."
	.venv/bin/sphinx-build -W -q -b html docs docs/_build

clean:  ## Remove what the other targets made.
	rm -rf .venv .venv-middle .venv-oldest docs/_build runs .pytest_cache .ruff_cache

python-3.11:
	@echo $(PYTHON_3_11)
