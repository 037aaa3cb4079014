# make demo    quantize a small trained model, compare it with its original, write demo/report.html
# make test    lint, types and tests
# make test-gpu-kernels    kernels for NVIDIA GPUs in Triton's interpreter and in its compiler; no GPU is needed
# make clean   remove what these made
#
# All install into .venv what constraints.txt pins, once: again only when it or pyproject.toml changes.
# PYTHON=python3.12 chooses the interpreter (3.10 or newer), VENV=... another place.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := pyproject.toml constraints.txt
CPU_TORCH := https://download.pytorch.org/whl/cpu

.PHONY: demo test test-gpu-kernels lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/dither demo

# Tests start processes of their own; on few cores, waiting threads that spin slow the others down.
test: export OMP_WAIT_POLICY ?= PASSIVE
test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# Two processes: Triton's interpreter and its compiler cannot be mixed in one. Tests of the GPU itself are in the second.
test-gpu-kernels: export OMP_WAIT_POLICY ?= PASSIVE
test-gpu-kernels: $(VENV)/.installed-gpu
	HF_HUB_OFFLINE=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/gpu
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/gpu

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

clean:
	rm -rf $(VENV) demo build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A machine without an NVIDIA GPU gets torch's CPU build where its index can be reached: the default one is gigabytes larger.
# Only torch is taken from there, and by itself, so that no other package waits for an index that does not answer.
$(VENV)/.torch: $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "dither needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null; then extra=; \
	elif $(BIN)/python -c 'import urllib.request as u; u.urlopen("$(CPU_TORCH)/torch/", timeout=5)' 2>/dev/null; \
	then extra="--extra-index-url $(CPU_TORCH)"; else extra=; fi; \
	set -x; $(PIP) install --no-deps --constraint constraints.txt $$extra torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	@touch $@

# Triton is large, and nothing else needs it.
$(VENV)/.installed-gpu: $(VENV)/.installed-test
	$(PIP) install --constraint constraints.txt --editable '.[test,gpu]'
	@touch $@
