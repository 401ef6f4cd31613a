# Every target explains itself: `make help`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install weights distill story test test-slow check format docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## the virtual environment, with exact versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found: $$($(PYTHON) --version). Try make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "installing into $(VENV): about 1.6 GB, two to four minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,guard,dev]'
	@touch $@

weights: install ## the teacher's weights, into the cache folder
	$(BIN)/stillhouse models pull smollm2-135m

distill: weights ## the main job: a student from a teacher, in about 12 minutes on two cores
	$(BIN)/stillhouse distill examples/quickstart.yaml

story: weights ## all three sides in one run: a campaign simulated, found, and its student recognised
	$(BIN)/python examples/whole_story.py

test: install weights ## the default test suite: times first and alone, then the rest in two processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'timed and not slow' -q
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not timed and not slow' -n 2

test-slow: install weights ## the tests that take longer: kills, real weights
	$(BIN)/pytest -m slow

check: install ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

format: install ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## rewrite the generated pages of docs/
	$(BIN)/python -m tests.test_docs

clean: ## remove what is made here, runs excepted
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
