# `make` prints this list. Needs only Python 3.11 or newer, make and git.
PYTHON ?= python3
PORT ?= 8000
LAB ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help book test lab serve lint pdf clean constraints

help:  ## print this list
	@echo "Kinetics Lab: make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Kinetics Lab needs Python 3.11 or newer; this one is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,dev]'
	@touch $@

book: $(INSTALLED)  ## execute every notebook, build the book, print where it is
	@$(BIN)/kinetics-lab book

test: $(INSTALLED)  ## run the whole test suite
	@$(BIN)/python -m pytest

lab: $(INSTALLED)  ## open the notebooks in JupyterLab, with this project's kernel (LAB=options)
	@$(BIN)/python -m ipykernel install --sys-prefix --name kinetics-lab --display-name "Kinetics Lab" >/dev/null
	@$(BIN)/jupyter lab --notebook-dir=. $(LAB)

serve: book  ## build the book and serve it on this machine (PORT=8000)
	@$(BIN)/kinetics-lab serve --port $(PORT)

lint: $(INSTALLED)  ## check format, types and stripped notebooks
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

pdf: $(INSTALLED)  ## print the book to _build/kinetics-lab.pdf (needs Chromium)
	@$(BIN)/kinetics-lab pdf

clean:  ## remove everything built, and the environment
	rm -rf _build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Resolve the newest versions pyproject.toml allows, in an environment of their own, and pin them.
constraints:  ## write constraints.txt anew
	rm -rf _build/constraints
	$(PYTHON) -m venv _build/constraints
	_build/constraints/bin/python -m pip install --quiet --disable-pip-version-check '.[book,dev]'
	{ echo "# The versions everything was tested with. Made by: make constraints"; \
	  _build/constraints/bin/python -m pip freeze --exclude kinetics-lab; } > _build/constraints.txt
	mv _build/constraints.txt constraints.txt
	rm -rf _build/constraints
