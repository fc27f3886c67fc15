# The commands of this project; each is a line or two, and the logic is in scripts/.
# PYTHON is what makes the virtual environment (3.11 or later).

PYTHON ?= python3
ARCH   ?= host
BIN    := .venv/bin
SETUP  := scripts/bootstrap.sh $(PYTHON) scripts/setup.py

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format bench soak fuzz agent check-clean clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install all that is needed: system packages, virtual environment, agent, template
	@$(SETUP) all

run: ## Set up what is missing, then run code in a real microVM (examples/basic_usage.py)
	@$(SETUP) run examples/basic_usage.py

test: ## Set up what is missing, then lint, check types and run all tests
	@$(SETUP) all
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest tests/unit
	$(BIN)/pytest tests --ignore=tests/unit

lint: ## Check format, lint and types
	@$(SETUP) env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: ## Format the code, and mend what the linter can mend
	@$(SETUP) env
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: ## Measure, each figure beside its floor (ARGS='--only NAME', '--json FILE'); draws them too
	@$(SETUP) all
	$(BIN)/python tests/benchmark.py --plot build/benchmark.svg $(ARGS)

soak: ## Run the tests that take long (those marked soak)
	@$(SETUP) all
	$(BIN)/pytest tests -m soak --timeout=0

fuzz: ## Fuzz the frame parsers of agent and host, with sanitizers (ARGS='--seconds N')
	@$(SETUP) env
	$(BIN)/python native/fuzz.py $(ARGS)
	$(BIN)/pytest tests/fuzz

agent: ## Compile the guest agent and the jail (ARCH=host, x86_64, aarch64 or all)
	@$(SETUP) env
	$(BIN)/python native/build.py --arch $(ARCH)

check-clean: ## Prove the first two commands in a Debian made from nothing (as root; takes long)
	@$(PYTHON) scripts/clean_root.py

clean: ## Remove what was built here: environment, binaries, caches (not the templates)
	rm -rf .venv build dist src/novasandbox/_native
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
