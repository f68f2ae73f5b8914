# The front door: people and CI call the same targets. `make` alone lists them.

PYTHON ?= python3.11
MACHINE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
RUN ?= runs/demo
CONFIG ?=
ARGS ?=
WORKERS ?= 2
MINUTES ?= 120
SEED ?= 0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(MACHINE)
EXTRAS := --extra captions --extra images --extra trainer --extra dev
BACKEND := $(if $(filter laptop,$(MACHINE)),--torch-backend cpu)
UV_VERSION := $(shell sed -n 's/^uv==//p' requirements/$(MACHINE).txt 2>/dev/null)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
PRISM := .cache/bin/prism
BEAM_VERSION := $(shell sed -n 's/^apache-beam==//p' requirements/$(MACHINE).txt 2>/dev/null)

ifeq ($(wildcard requirements/$(MACHINE).txt),)
$(error MACHINE=$(MACHINE): expected cpu, gpu or laptop)
endif

# Importing torch and vLLM anew without their bytecode takes a quarter of a minute every time.
export PYTHONDONTWRITEBYTECODE :=
# Waiting threads that spin take the time of those that work, wherever anything else runs.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install demo concepts backgrounds captions curate images report train evaluate test \
        test-slow test-all soak lint format lock prism tiny-sd testset clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'
	@echo
	@echo "  MACHINE=cpu|gpu|laptop  what is installed (see requirements/README.md); here: $(MACHINE)"
	@echo "  RUN=$(RUN)        where make demo writes"
	@echo "  WORKERS=$(WORKERS)             how many tests run at the same time"

install: $(STAMP)  ## Install the pinned versions into .venv

$(STAMP): requirements/$(MACHINE).txt setup.py
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; set PYTHON=" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/uv --version 2>/dev/null | grep -qF "uv $(UV_VERSION)" \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python $(BACKEND) requirements/$(MACHINE).txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(STAMP)  ## Concepts to a scored encoder on the built-in models; minutes on two cores
	$(BIN)/python -m pipelines captions pipelines/configs/demo.yaml run=$(RUN)
	$(BIN)/python -m pipelines curate pipelines/configs/demo.yaml run=$(RUN)
	$(BIN)/python -m pipelines images pipelines/configs/demo-images.yaml run=$(RUN)
	$(BIN)/python -m trainer.train trainer/configs/demo.yaml run=$(RUN)
	$(BIN)/python -m trainer.evaluate all trainer/configs/demo-evaluate.yaml run=$(RUN)
	$(BIN)/python -m pipelines report pipelines/configs/demo-report.yaml run=$(RUN)

concepts backgrounds captions curate images report: $(STAMP)
	$(if $(CONFIG),,$(error make $@ needs CONFIG=path/to/config.yaml))
	$(BIN)/python -m pipelines $@ $(CONFIG) $(ARGS)
concepts:  ## Check a concept list: CONFIG=pipelines/configs/demo.yaml ARGS="key=value"
backgrounds:  ## Find places for concepts: CONFIG=, ARGS="key=value --runner=..."
captions:  ## Write captions: CONFIG=pipelines/configs/demo.yaml ARGS="key=value --runner=..."
curate:    ## Deduplicate and shuffle captions: CONFIG=, ARGS=
images:    ## Paint the captions: CONFIG=pipelines/configs/demo-images.yaml, ARGS=
report:    ## One HTML page about a run: CONFIG=, ARGS=

train: $(STAMP)  ## Train an encoder here: CONFIG=trainer/configs/demo.yaml, ARGS=
	$(if $(CONFIG),,$(error make $@ needs CONFIG=path/to/config.yaml))
	$(BIN)/python -m trainer.train $(CONFIG) $(ARGS)

evaluate: $(STAMP)  ## Score an encoder: CONFIG=trainer/configs/demo-evaluate.yaml, ARGS=
	$(if $(CONFIG),,$(error make $@ needs CONFIG=path/to/config.yaml))
	$(BIN)/python -m trainer.evaluate all $(CONFIG) $(ARGS)

test: $(STAMP)  ## The fast tests, under 5 minutes on two cores
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(STAMP)  ## Only the tests marked slow
	$(PYTEST) -m slow $(ARGS)

test-all: $(STAMP)  ## Every test, as CI runs them, under 25 minutes on two cores
	$(PYTEST) $(ARGS)

soak: $(STAMP)  ## Random faults, the printed remedies, all bytes: MINUTES=120 RUN= SEED= ARGS=
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --seed $(SEED) --out $(RUN)/soak $(ARGS)

lint: $(STAMP)  ## ruff and mypy, both strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP)  ## Resolve requirements/*.txt anew
	for machine in cpu gpu laptop; do \
		$(BIN)/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 \
			--python-platform x86_64-unknown-linux-gnu $(EXTRAS) \
			--override requirements/overrides-$$machine.txt \
			-o requirements/$$machine.txt setup.py requirements/$$machine.in || exit 1; \
	done

prism: $(PRISM)  ## Build Beam's portable runner with Go, for the tests of the Flink path
$(PRISM):
	@command -v go >/dev/null || { echo "make prism needs Go" >&2; exit 2; }
	GOBIN=$(abspath $(dir $(PRISM))) go install \
		github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM_VERSION)

tiny-sd: $(STAMP)  ## Make the built-in image model again (hours)
	$(BIN)/python -m pipelines.tiny_sd $(ARGS)

testset: $(STAMP)  ## Make the built-in test pictures again
	$(BIN)/python -m trainer.evaluate.make_testset $(ARGS)

clean:  ## Remove caches (runs and .venv stay)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
