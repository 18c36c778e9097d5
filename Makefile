# make demo     installs into .venv, runs the main job on the embedded data and says where its report is
# make explore  opens a live page about the model of make demo in the browser
# make test     installs the test tools as well, then runs the linters, the type checker and the tests
# make test-all the same with the tests that are marked slow
# make test-oldest, make test-newest    pytest with the lower bounds of pyproject.toml, and with the newest of everything
# make docs     builds the documentation in docs/_build/html; its notebooks are executed
# make clean    removes .venv and what the checkers cached
#
# PYTHON=python3.12 picks another interpreter, VENV=folder another place for the environment,
# TEST_JOBS=4 how many test processes run side by side, PYTEST_ARGS='-k pinv' what pytest is told besides.

PYTHON ?= python3
VENV ?= .venv
TEST_JOBS ?= 2
MARKS ?= and not slow
PYTEST_ARGS ?=
CONSTRAINTS ?= constraints.txt

RUN := $(VENV)/bin/python
PIP_INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: help demo explore test test-all pytest test-oldest test-newest check docs clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -10

demo: $(VENV)/.installed
	$(RUN) -m experiments.quickstart

explore: demo
	$(RUN) -m experiments.explore --run-dir runs/quickstart-synthetic-cnn-seed0

test: check pytest

test-all:
	$(MAKE) test MARKS=

# Twice: compiled as a user compiles it where the last digits matter, and fast for the rest. PYTEST_ARGS may choose no test
# of one of them, which pytest ends with 5; without it that is an error.
PYTEST := -m pytest -n $(TEST_JOBS) --dist worksteal --durations 15
NONE_CHOSEN := $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])
pytest: $(VENV)/.installed-test
	$(RUN) $(PYTEST) -m 'optimized $(MARKS)' $(PYTEST_ARGS) $(NONE_CHOSEN)
	FAST_COMPILATION=1 $(RUN) $(PYTEST) -m 'not optimized $(MARKS)' $(PYTEST_ARGS) $(NONE_CHOSEN)

test-oldest:
	$(PYTHON) tests/lower_bounds.py > .lower-bounds.txt
	$(MAKE) pytest VENV=.venv-oldest CONSTRAINTS=.lower-bounds.txt

test-newest:
	$(MAKE) pytest PYTHON=python3.13 VENV=.venv-newest CONSTRAINTS=/dev/null

check: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.installed-docs
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .lower-bounds.txt .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps are written last, so an interrupted installation is taken up again by the next call.
$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "error: there is no '$(PYTHON)' here. Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "error: $$($(PYTHON) --version) does not fit: Python 3.11, 3.12 or 3.13 is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "error: $(PYTHON) has no 'venv' or 'ensurepip' module (on Debian and Ubuntu it is the package python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (about 1.3 GB; a minute or two the first time)"
	$(PIP_INSTALL) --editable '.[experiments,pretrained,explore]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing into $(VENV), test tools included (about 1.7 GB; a minute or two the first time)"
	$(PIP_INSTALL) --editable '.[experiments,pretrained,explore,test,bench,canary,docs]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[experiments,pretrained,explore,docs]'
	@touch $(VENV)/.installed $@
