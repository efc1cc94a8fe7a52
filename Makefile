# Each target makes what it needs: the first one called builds .venv (Python >= 3.11, exact versions from
# constraints.txt); the tests add what they alone need. `make PYTHON=/path/to/python3.12 ...` chooses another interpreter.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help demo demo-rlhf test test-all test-page engines versions versions-ends conformance docs bench style check clean

# the first interpreter on PATH that is new enough
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
endif
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_RLHF := $(VENV)/.installed-rlhf
INSTALLED_DEV := $(VENV)/.installed-dev
RLHF := outputs/demo-rlhf
# where a CPU has no instructions for bfloat16, its products take three times as long as those of float32
BF16 := $(if $(shell grep -m1 -owE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo 2>/dev/null),true,false)
SUITE := .cache/conformance
STACKS := decoder decoder_experts encoder encoder_decoder
BENCHMARKS ?= training generation memory loading interop time_to_quality

# `make versions`: environments that see the packages of .venv behind their own, so that torch is installed once;
# what differs is named in full
PINS_5.16 := transformers==5.16.0 huggingface_hub==1.33.0 httpx==0.28.1 httpcore==1.0.9 peft==0.21.0 trl==1.15.0
PINS_5.20 := transformers==5.20.2
PINS_5.22 := transformers==5.22.2
PINS_5.24 := transformers==5.24.0
VERSIONS ?= 5.16 5.20 5.22 5.24
NEWEST := $(lastword $(VERSIONS))
ENDS := $(firstword $(VERSIONS)) $(NEWEST)
version_python = .cache/versions/$(1)/bin/python

# one thread per process, nothing from the network: what the tests measure does not depend on the machine
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

help:
	@echo "make demo          train a small decoder on real text (minutes on a CPU), reopen it, generate"
	@echo "make demo-rlhf     pretraining, SFT, reward model, PPO and a report on it, on rated texts (20 minutes on a CPU)"
	@echo "make test          the fast tests"
	@echo "make test-all      every test, the slow ones included"
	@echo "make test-page     the page of hf-llm demo, with Gradio and, if it is there, Chromium"
	@echo "make engines       the exports in other engines (CTranslate2, ONNX Runtime, MLX; llama.cpp where it is built)"
	@echo "make versions      the models' tests with other versions of transformers (minutes for each)"
	@echo "make conformance   transformers' own model tests on the three stacks, beside native controls"
	@echo "make docs          the documentation, with the API reference, into .cache/site"
	@echo "make bench         measure beside transformers, on an idle machine, into recipes/benchmarks/*.md (about two hours)"
	@echo "make style         format and mend what ruff can mend"
	@echo "make check         ruff, changing nothing"
	@echo "make clean         remove .venv, caches and build outputs (not outputs/)"

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "hf_llm needs Python 3.11 or later, and none is on PATH: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hf_llm needs Python 3.11 or later; $(PYTHON) is older" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[train]'
	touch $@

$(INSTALLED_RLHF): $(INSTALLED)
	$(PIP) -e '.[peft,rlhf,eval]'
	touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/accelerate launch --quiet --config_file recipes/accelerate/cpu.yaml --num_cpu_threads_per_process 2 \
	    recipes/pretrain.py --config recipes/configs/demo.yaml --training.bf16 $(BF16)
	$(BIN)/python recipes/generate.py outputs/demo

# a stage that is done is not trained again, one that was stopped goes on
demo-rlhf: $(RLHF)/report/metrics.json

stage = $(BIN)/accelerate launch --quiet --config_file recipes/accelerate/cpu.yaml --num_cpu_threads_per_process 2 \
    recipes/$(1).py --config recipes/configs/demo-rlhf/$(2).yaml --training.bf16 $(BF16)

$(RLHF)/pretrained/model.safetensors: | $(INSTALLED_RLHF)
	$(call stage,pretrain,pretrain)

$(RLHF)/sft/metrics.json: $(RLHF)/pretrained/model.safetensors
	$(call stage,sft,sft)

$(RLHF)/reward/metrics.json: $(RLHF)/pretrained/model.safetensors
	$(call stage,reward_model,reward)

$(RLHF)/ppo/metrics.json: $(RLHF)/sft/metrics.json $(RLHF)/reward/metrics.json
	$(call stage,ppo,ppo)

$(RLHF)/report/metrics.json: $(RLHF)/ppo/metrics.json
	$(BIN)/python recipes/rlhf_report.py --config recipes/configs/demo-rlhf/report.yaml

test: $(INSTALLED_DEV)
	$(TEST_ENV) $(BIN)/pytest -n $(WORKERS)

test-all: $(INSTALLED_DEV)
	$(TEST_ENV) $(BIN)/pytest -n $(WORKERS) -m "slow or not slow"

.cache/versions/%/.ready: $(INSTALLED_DEV) Makefile
	$(BIN)/python -m venv --without-pip --clear .cache/versions/$*
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > $$($(call version_python,$*) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
	$(call version_python,$*) -m pip install --quiet --disable-pip-version-check --no-deps $(PINS_$*)
	touch $@

# what opens, trains and generates, in each version; the rest of the suite is that of the pinned one
version-%: .cache/versions/%/.ready
	$(TEST_ENV) $(call version_python,$*) -m pytest -n $(WORKERS) tests/models tests/golden tests/publishing/test_check.py

versions: $(VERSIONS:%=version-%)

versions-ends: $(ENDS:%=version-%)

$(SUITE)/.ready: .cache/versions/$(NEWEST)/.ready tests/conformance/fetch.py $(wildcard tests/conformance/stand_ins/*.py tests/conformance/stand_ins/*/*.py)
	$(call version_python,$(NEWEST)) tests/conformance/fetch.py $(SUITE)
	touch $@

conformance: $(SUITE)/.ready
	$(TEST_ENV) PYTHONPATH=$(SUITE) $(call version_python,$(NEWEST)) -m pytest -n $(WORKERS) $(STACKS:%=tests/conformance/%.py)

# the page of `hf-llm demo`, in an environment that sees the packages of .venv behind Gradio and what that wants
.cache/versions/page/.ready: $(INSTALLED_DEV)
	$(BIN)/python -m venv --clear .cache/versions/page
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > $$($(call version_python,page) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
	$(call version_python,page) -m pip install --quiet --disable-pip-version-check gradio==6.31.0
	touch $@

test-page: .cache/versions/page/.ready
	$(TEST_ENV) $(call version_python,page) -m pytest tests/use/test_page.py

# engines that exports are tried with and that want packages of their own
.cache/engines/mlx/.ready:
	$(PYTHON) -m venv --clear .cache/engines/mlx
	.cache/engines/mlx/bin/pip install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' mlx-lm==0.32.2 transformers==5.23.0
	touch $@

engines: $(INSTALLED_DEV) .cache/engines/mlx/.ready
	$(TEST_ENV) $(BIN)/pytest -n $(WORKERS) tests/engines

docs: $(INSTALLED_DEV)
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open .cache/site/index.html"

bench: $(INSTALLED)
	set -e; for name in $(BENCHMARKS); do $(BIN)/python recipes/benchmarks/figures.py recipes/benchmarks/$$name.py; done

style: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .ruff_cache
	find hf_llm recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
