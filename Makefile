# The two commands a new user needs: `make demo` and `make test`. Both install what is missing, pinned, into .venv.

PYTHON  ?= python3
MINUTES ?= 4
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
# A second, older transformers that tests open our checkpoints with, beside the one in .venv.
OLD_TRANSFORMERS := .cache/transformers-4.57

.PHONY: help install demo test test-fast mlx llama-cpp peers lint types format clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv with the package and its development tools, pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV), pinned by constraints.txt (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## stories -> tokens -> a small Qwen3 trained for MINUTES -> samples and a report
	@$(BIN)/tiny-transformer train --config configs/demo.yaml --max_train_minutes $(MINUTES) --continue

# Two processes with a thread each: on two cores, threads of two processes would wait for each other.
test: $(STAMP) $(OLD_TRANSFORMERS)/.installed  ## everything: the fast suite, the slow tests, those of clocks (alone), the faults
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not fault and not clock"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow and not fault and not clock"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m clock
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "fault and not clock"

test-fast: $(STAMP)  ## the fast suite only, under three minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not fault and not clock"

$(OLD_TRANSFORMERS)/.installed: $(STAMP)
	@echo "installing transformers 4.57 beside the other, for the compatibility tests"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OLD_TRANSFORMERS) \
	    'transformers==4.57.6' 'tokenizers==0.22.2' 'huggingface-hub==0.36.0' \
	    requests==2.34.2 urllib3==2.8.0 idna==3.20 certifi==2026.10.18 charset-normalizer==3.5.2
	@touch $@

mlx: $(STAMP)  ## optional: mlx-lm beside the environment; a test then opens our models in it
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .cache/mlx \
	    mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2

llama-cpp: $(STAMP)  ## optional: build llama.cpp (cmake, g++, about seven minutes); a test then writes with it
	@nice $(BIN)/python -m pip install --disable-pip-version-check --no-deps --target .cache/llama-cpp \
	    --no-binary llama-cpp-python 'llama-cpp-python==0.3.36' 'diskcache==5.6.3'

peers: $(STAMP)  ## optional: what benchmarks/train.py compares with, beside the environment
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .cache/peers \
	    accelerate==1.15.0 litgpt==0.5.13 jsonargparse==4.53.0 psutil==7.2.2

lint: $(STAMP)  ## ruff: style, imports, known mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## ty: static types of the package
	$(BIN)/ty check

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make made (not your data or runs)
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
