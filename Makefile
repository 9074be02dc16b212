# `make train` runs the main job, `make test` passes the tests; both set everything up on a fresh machine first.

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/first
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export OMP_WAIT_POLICY ?= passive

.PHONY: train test check format bundled-model

train: $(STAMP)
	@if [ -f $(RUN)/results.json ]; then \
	  echo "$(RUN) holds a finished run; look at $(RUN)/training.png, or run: make train RUN=runs/second"; \
	else \
	  $(BIN)/textenv train --env textenv/MovieReview-v0 --agent ppo --reward vader --seed 7 --out $(RUN); \
	fi

test: $(STAMP)
	$(BIN)/python -m pytest -q

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# How the bundled model came to be; about two hours on two cores. See textenv/models/bundled/README.md.
bundled-model: $(STAMP)
	$(BIN)/textenv corpus --out runs/corpus
	$(BIN)/textenv pretrain --out runs/base --epochs 1 --tokenizer-files runs/corpus/reviews-train.jsonl \
	  --files runs/corpus/general.jsonl runs/corpus/reviews-train.jsonl runs/corpus/reviews-train.jsonl
	$(BIN)/textenv sft --model runs/base --out runs/bundled --save-dtype float16 \
	  --files runs/corpus/reviews-train.jsonl --validation runs/corpus/reviews-validation.jsonl
	$(BIN)/python benchmarks/bits_per_character.py --model runs/bundled

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $(STAMP)
