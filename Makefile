# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: help install demo test check test-slow format results pictures golden ablations clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

install: $(STAMP)  ## .venv with dinotrack and all that its checks need

demo: install  ## the main job on three synthetic videos, beside two baselines
	$(BIN)/dinotrack demo

test: install  ## the tests, at most 5 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations=10

check: install  ## formatting, lint, types, rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test-slow: install  ## what is too long for `make test`: the wheel in another environment, notebooks
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow --durations=10
	$(BIN)/python -m pytest -o addopts=-ra -n 2 --nbmake --nbmake-timeout=300 notebooks

format: install  ## format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/nbstripout notebooks/*.ipynb

results: install  ## measure again what the README prints; needs the clips of ../shared/data
	$(BIN)/python scripts/results.py demo horsejump horsejump_without_masks cat paragliding

pictures: install  ## the pictures of docs/pictures.md and docs/viewer.md; needs the clips of ../shared/data, the latter Chromium
	$(BIN)/python scripts/pictures.py
	$(BIN)/python scripts/screenshots.py

golden: install  ## compare the golden run, experiment=tiny, with tests/golden
	$(BIN)/python scripts/golden.py

ablations: install  ## the table of baselines and ablations; goes on where it was stopped
	$(BIN)/dinotrack ablate
	cp runs/ablations/ablations.csv docs/results/
	$(BIN)/python scripts/results.py

clean:  ## remove what was made here
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache
