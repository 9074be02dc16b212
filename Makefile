# `make train` runs the main job, `make test` passes the tests; both set everything up on a fresh machine first.
# Tests that take more than a few seconds each are passed by `make test-slow`.

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/first
TRAIN_FLAGS ?=
PYTEST_FLAGS ?= -q -n 2 --dist loadfile
# The recipe of the bundled model; see textenv/models/bundled/README.md.
CORPUS ?= runs/corpus
PRETRAIN_FLAGS ?= --epochs 1
SFT_FLAGS ?= --save-dtype float16
# That of the bundled reward model; see textenv/models/bundled_reward/README.md.
RANKINGS ?= runs/rankings
REWARD_FLAGS ?= --layers 3 --epochs 2 --learning-rate 7e-4 --batch-size 48 --save-dtype float16

BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: train test test-slow check format bundled-model bundled-reward setup

train: $(STAMP)
	@if [ -f $(RUN)/results.json ]; then \
	  echo "$(RUN) holds a finished run; look at $(RUN)/training.png, or run: make train RUN=runs/second"; \
	else \
	  echo "$(BIN)/textenv train --out $(RUN) (cut off? the same command goes on)"; \
	  $(BIN)/textenv train --env textenv/MovieReview-v0 --agent ppo --reward vader --seed 7 --out $(RUN) $(TRAIN_FLAGS); \
	fi

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# About two hours on two cores.
bundled-model: $(STAMP)
	$(BIN)/textenv corpus --out $(CORPUS)
	$(BIN)/textenv pretrain --out runs/base --tokenizer-files $(CORPUS)/reviews-train.jsonl $(PRETRAIN_FLAGS) \
	  --files $(CORPUS)/general.jsonl $(CORPUS)/reviews-train.jsonl $(CORPUS)/reviews-train.jsonl
	$(BIN)/textenv sft --model runs/base --out runs/bundled $(SFT_FLAGS) \
	  --files $(CORPUS)/reviews-train.jsonl --validation $(CORPUS)/reviews-validation.jsonl
	$(BIN)/python benchmarks/bits_per_character.py --model runs/bundled

# A quarter of an hour on one core.
bundled-reward: $(STAMP)
	$(BIN)/textenv reward data --out $(RANKINGS)
	$(BIN)/textenv reward train --files $(RANKINGS)/train.jsonl --validation $(RANKINGS)/validation.jsonl \
	  --out runs/bundled_reward $(REWARD_FLAGS)
	$(BIN)/python benchmarks/reward_model.py --model runs/bundled_reward

setup: $(STAMP)

# The stamp is written last, so a set-up that was cut off is taken up again. A venv whose creation failed halfway (Debian
# without python3-venv leaves one without pip) is made anew.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "textenv needs Python 3.11 or later, and $(PYTHON) is %d.%d; run: make PYTHON=python3.11" % sys.version_info[:2])'
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet --constraint constraints.txt setuptools torch
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --use-pep517 --editable '.[dev]'
	@touch $@
