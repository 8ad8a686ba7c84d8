# Every target but help, words and clean first makes the environment in .venv if it must.
PYTHON ?= python3
VENV := .venv
SWEEPS := $(VENV)/bin/sweeps
# Two files of tests at once: most tests wait for processes of theirs. The quick ones come last and even out the end.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
PRESET :=
SPACE :=
NAME :=
HOURS :=
ARGS :=
ONLY :=

# What the command line of make may set. A name that does nothing would run another sweep than the one that was meant.
VARIABLES := PRESET SPACE NAME HOURS ARGS ONLY PYTHON VENV
PASSED_ON := RAY_% MLFLOW_% SWEEPS_%  # what programs read of their environment
GIVEN := $(foreach _name,$(.VARIABLES),$(if $(filter command,$(origin $(_name))),$(_name)))
UNKNOWN := $(filter-out -% $(VARIABLES) $(PASSED_ON),$(GIVEN))
define NEWLINE


endef
upper = $(shell echo '$(1)' | tr '[:lower:]' '[:upper:]')
remedy = $(if $(filter $(VARIABLES),$(call upper,$(1))),write $(call upper,$(1))=$(value $(1)),choose one of $(VARIABLES), \
or set it in the environment: $(1)=... make $(MAKECMDGOALS))
refusal = $(NEWLINE)  $(1)=$(value $(1)) is not a variable of this Makefile; $(call remedy,$(1))
ifneq ($(UNKNOWN),)
$(error $(foreach _name,$(UNKNOWN),$(call refusal,$(_name))))
endif

CHOICE := $(if $(PRESET),--preset '$(PRESET)') $(if $(SPACE),--space '$(SPACE)') $(if $(HOURS),--hours '$(HOURS)')
.DEFAULT_GOAL := help
.PHONY: help sweep resume status ui report plan doctor gpu-check test test-all test-faults check fix words bench cuda-trace clean

help:
	@echo 'make sweep                  run a sweep to its verdict (laptop without a GPU, matched with one)'
	@echo 'make sweep PRESET=smoke     the same in about a minute; or SPACE=my-space.toml'
	@echo 'make sweep HOURS=0.5        at the largest budget that this machine trains in half an hour'
	@echo 'make plan                   what would run, before anything is spent'
	@echo 'make resume NAME=laptop-1   go on with a sweep that was interrupted'
	@echo 'make status [NAME=...]      sweeps, or the cells of one'
	@echo 'make report NAME=...        write report.html and report.md again'
	@echo 'make ui                     MLflow UI on this machine'
	@echo 'make doctor                 what this machine can do, and what to fix'
	@echo 'make test                   quick tests, one real sweep on Ray included (at most 8 minutes on two cores)'
	@echo 'make test-all               every test: whole sweeps, clusters, faults (at most 40 minutes)'
	@echo 'make test-faults            the fault tests alone, at many more moments, and 20,000 simulated schedules'
	@echo 'make check | fix            lint and types; format'
	@echo 'make words                  words that the documents and the code should write otherwise'
	@echo 'make bench [ONLY=step]      step, loader, engine, verdict, tracking, sweep, early_stopping: writes bench/*.json'
	@echo 'make gpu-check              on a machine with CUDA: right, fast, packed, resumable, or not (error 4 without)'
	@echo 'make cuda-trace             without a GPU: what a step would ask of one (makes .venv-cuda, 5 GB, once)'
	@echo 'make clean                  remove the environment and caches; sweeps in runs/ stay'
	@echo
	@echo 'Options: PRESET= SPACE= NAME= ARGS="--set budget_tokens=1048576". `$(SWEEPS) --help` lists everything.'

sweep: $(VENV)/.ready
	@$(SWEEPS) run $(CHOICE) $(if $(NAME),--name '$(NAME)') $(ARGS)

plan: $(VENV)/.ready
	@$(SWEEPS) plan $(CHOICE) $(ARGS)

resume status report: $(VENV)/.ready
	@$(SWEEPS) $@ $(NAME) $(ARGS)

ui doctor gpu-check: $(VENV)/.ready
	@$(SWEEPS) $@ $(ARGS)

test: $(VENV)/.ready-dev
	@$(PYTEST) -m 'not slow' $(ARGS)

test-all: $(VENV)/.ready-dev
	@$(PYTEST) $(ARGS)

test-faults: $(VENV)/.ready-dev
	@SWEEPS_FAULTS=full $(VENV)/bin/python -m pytest -m 'faults' --ignore=tests/simulation $(ARGS)
	@SWEEPS_FAULTS=full SWEEPS_SIMULATIONS=$${SWEEPS_SIMULATIONS:-20000} $(VENV)/bin/python -m pytest -s tests/simulation

check: $(VENV)/.ready-dev
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

fix: $(VENV)/.ready-dev
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

words:
	@$(PYTHON) .ci/words

bench: $(VENV)/.ready-dev
	@$(VENV)/bin/python -m bench $(if $(ONLY),--only '$(ONLY)') $(ARGS)

cuda-trace:
	@PYTHON='$(PYTHON)' bench/cuda_trace.sh $(ARGS)

clean:
	@rm -rf $(VENV) .venv-cuda build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'This needs Python 3.11 or newer with its venv module; say which: make $(or $(MAKECMDGOALS),sweep) PYTHON=python3.12' >&2; exit 1; }
	@echo 'Making the environment in $(VENV) (about two minutes and 2.2 GB, once) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo 'Adding the tools for tests and checks to $(VENV) (about half a minute, once) ...'
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
