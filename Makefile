# `make` prints this list. Needs only Python 3.11 or newer, make and git.
PYTHON ?= python3
PORT ?=
ADDRESS ?= 127.0.0.1
TOKEN ?=
LAB ?=
TORCH ?= 2.13.0
TRITON ?= 3.7.1
GPU_PYTHON ?=
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNELS := $(VENV)/.kernels

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install torch book test test-slow test-triton36 gpu gpu-check has-gpu sanitize lab serve lint strip pdf clean distclean constraints

help:  ## print this list
	@echo "Kinetics Lab: make TARGET"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Kinetics Lab needs Python 3.11 or newer; this one is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[book,dev]'
	@touch $@

install: $(INSTALLED)  ## install into .venv what the book, the notebooks and the command line need

torch: $(KERNELS)  ## install PyTorch, Triton and Transformers, too: for Part II and IV on your own machine, `generate`, dask

# PyTorch and what builds on it are large, and no page of the book needs them: the tests install them, `make book`
# does not.
$(KERNELS): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[kernels,generate,cluster]'
	@touch $@

book: $(INSTALLED)  ## execute every notebook, build the book, print where it is
	@$(BIN)/kinetics-lab book

test: $(KERNELS)  ## run the tests (installs PyTorch and Triton, too)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow"

test-slow: $(KERNELS)  ## run the tests that `make test` leaves out, and more examples of the others
	@HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "slow or hypothesis"

test-triton36: $(KERNELS)  ## the kernels once more under Triton 3.6, which many GPU hosts have: compiled, and their main tests
	@test -d _build/triton-3.6 || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target _build/triton-3.6 triton==3.6.0
	@PYTHONPATH=_build/triton-3.6:kernels $(BIN)/python kernels/aot_check.py > _build/aot-3.6.txt || { cat _build/aot-3.6.txt; exit 1; }
	@PYTHONPATH=_build/triton-3.6 $(BIN)/python -m pytest -q tests/kernels/test_dense.py tests/kernels/test_sparse.py tests/kernels/test_fp8.py -m "not slow" -k "not any_shape and not any_sequence"

# A GPU host without internet brings its own PyTorch, Triton, pandas, pyarrow, pytest and, for whole models, transformers
# (5.17 or newer): make gpu GPU_PYTHON=python3.
# More options for pytest, where it has the plugin "-n 8": make gpu-check GPU_PYTHON=python3 PYTEST="-n 8".
MEASUREMENTS ?= data/measurements
SUITES ?= all
ON_GPU = PYTHONPATH=.:kernels$${PYTHONPATH:+:$$PYTHONPATH} $(SANITIZER) $(or $(GPU_PYTHON),$(BIN)/python)
SMALL = "tests/kernels/test_dense.py::test_groups[1-5]" "tests/kernels/test_dense.py::test_groups[3-8]" \
  "tests/kernels/test_sparse.py::test_block_topk_from_end_to_end[1-5]" "tests/kernels/test_append.py::test_refresh_makes_the_same_search_keys[33]"

gpu: has-gpu $(if $(GPU_PYTHON),,$(KERNELS))  ## time the kernels on this GPU, then run its chapters; a stopped run goes on (GPU_PYTHON=python3: no install)
	@files=$$($(ON_GPU) -m kinetics_lab.cli measure --suite $(SUITES) --out $(MEASUREMENTS)) || exit 1; echo "$$files"; \
	folder=$$(dirname $$(echo "$$files" | tail -1)); $(ON_GPU) -m kinetics_lab.cli measure --check $$folder || true; \
	if $(ON_GPU) -c 'import altair, ipykernel, papermill' 2>/dev/null; \
	then for page in notebooks/2[0-5]*.ipynb; do $(ON_GPU) -m kinetics_lab.cli run $$page -o _build/gpu/$$(basename $$page .ipynb) \
	  -p gpu $$(basename $$folder) -p measurements $(abspath $(MEASUREMENTS)) || exit 1; done; \
	else echo "papermill, ipykernel or altair is not installed: the chapters of Part II were left out"; fi

# Before anything is installed: PyTorch takes gigabytes.
has-gpu:
	@command -v nvidia-smi >/dev/null || { echo "this needs an NVIDIA GPU and its driver, and nvidia-smi is not on the PATH"; exit 1; }
	@cap=$$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1); \
	case "$$cap" in [1-7].*) echo "the kernels need compute capability 8.0 (sm_80: A100, A10, RTX 30) or newer; this GPU has $$cap"; exit 1;; esac

gpu-check: has-gpu $(if $(GPU_PYTHON),,$(KERNELS))  ## the kernels' tests, compiled on this GPU, and compute-sanitizer where it is found
	@$(ON_GPU) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("gpu-check needs a CUDA GPU, and PyTorch sees none")'
	@failed=0; $(ON_GPU) -m pytest $(PYTEST) -k "not test_any and not table" tests/kernels || failed=1; \
	$(ON_GPU) -m pytest $(PYTEST) -m gpu tests/test_hf.py || failed=1; \
	if command -v compute-sanitizer >/dev/null; \
	then for tool in memcheck racecheck; do $(MAKE) -s sanitize TOOL=$$tool || failed=1; done; \
	else echo "compute-sanitizer is not on the PATH: memcheck and racecheck were left out"; fi; exit $$failed

# PyTorch's own allocator would hide a read beyond a tensor: switched off. Libraries try calls that may fail: not reported.
sanitize: SANITIZER = PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $(TOOL) $(if $(filter memcheck,$(TOOL)),--report-api-errors no) --error-exitcode 1
sanitize:
	@echo "compute-sanitizer $(TOOL), on a few small cases"
	@$(ON_GPU) -m pytest -q $(SMALL)

lab: $(INSTALLED)  ## open the notebooks in JupyterLab (PORT=8888, ADDRESS=0.0.0.0 and TOKEN=secret from elsewhere, LAB=options)
	@$(BIN)/python -m ipykernel install --sys-prefix --name kinetics-lab --display-name "Kinetics Lab" >/dev/null
	@echo "JupyterLab at http://$(ADDRESS):$(or $(PORT),8888)/ until Ctrl-C. From another machine: make lab ADDRESS=0.0.0.0 PORT=8888 TOKEN=secret"
	@$(if $(TOKEN),JUPYTER_TOKEN='$(TOKEN)') $(BIN)/jupyter lab --notebook-dir=. --ip=$(ADDRESS) --port=$(or $(PORT),8888) \
	  $(if $(filter 0,$(shell id -u)),--allow-root --no-browser) $(LAB)

serve: book  ## build the book and serve it on this machine (PORT=8000)
	@$(BIN)/kinetics-lab serve --port $(or $(PORT),8000)

lint: $(INSTALLED)  ## check format, types, spelling and stripped notebooks
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/codespell
	@$(BIN)/python benchmarks/shared_cells.py --check && $(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb || \
	  { echo "These chapters are not as they are committed: make strip"; exit 1; }

strip: $(INSTALLED)  ## after running and saving chapters: take outputs out, leave what you wrote
	@$(BIN)/nbstripout --keep-id notebooks/*.ipynb
	@$(BIN)/python benchmarks/shared_cells.py >/dev/null

pdf: $(INSTALLED)  ## print the book to _build/kinetics-lab.pdf (needs Chromium)
	@$(BIN)/kinetics-lab pdf

# What is made again in minutes. All else below _build somebody asked for: answers, ladders, sweeps, runs of their own.
BUILT = book preview single bundle runs constraints constraints.txt triton-3.6 aot-3.6.txt kinetics-lab.pdf

clean:  ## remove what is built again in minutes; your own results, and .venv, stay
	rm -rf $(BUILT:%=_build/%) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +
	@rmdir _build 2>/dev/null; for kept in _build/*; do test ! -e $$kept || echo "kept: $$kept"; done

distclean:  ## remove all of _build and .venv, once you have said yes
	@echo "This removes $(VENV) and all of _build:"; ls _build 2>/dev/null | sed 's/^/  /'; printf 'Type yes to go on: '; \
	read answer; test "$$answer" = yes || { echo "nothing was removed"; exit 1; }
	@$(MAKE) -s clean >/dev/null; rm -rf _build $(VENV)

# Resolve the newest versions pyproject.toml allows (PyTorch, and the Triton that goes with it, as named above), in an
# environment of their own, and pin them.
constraints:  ## write constraints.txt anew
	rm -rf _build/constraints
	$(PYTHON) -m venv _build/constraints
	_build/constraints/bin/python -m pip install --quiet --disable-pip-version-check '.[book,dev,kernels,generate,cluster,traces]' \
	  torch==$(TORCH) triton==$(TRITON)
	{ echo "# The versions everything was tested with. Made by: make constraints"; \
	  _build/constraints/bin/python -m pip freeze --exclude kinetics-lab | \
	  sed -e 's/+cpu$$//' -e '/^nvidia-/d' -e '/^cuda-/d'; } > _build/constraints.txt
	mv _build/constraints.txt constraints.txt
	rm -rf _build/constraints
