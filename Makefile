# make run · make test · make faults · make check · make bench · make lock
# Needs Python 3.11 or newer and make; everything else is installed into .venv from requirements.lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup run test faults check bench lock clean

help:           ## What there is
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(READY) ## Install, and nothing else

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 …")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

run: $(READY)   ## Run the service: database and all, on port 8002
	@exec $(BIN)/tickets serve

# Where it is set, each of the hundreds of processes that tests start would compile every module anew.
test faults check: export PYTHONDONTWRITEBYTECODE :=

test: $(READY)  ## Every test, on all processors, on a PostgreSQL of its own (or DATABASE_URL)
	@exec $(BIN)/python -m pytest

faults: $(READY) ## The faults and the races, in their long form
	@START_ANEW=1 ON_DISK=1 KILLS=200 POSTGRES_KILLS=100 NETWORK_ROUNDS=10 DISK_FILLS=10 POWER_CUTS=20 OPERATIONS=200000 \
	  FUZZ_SEEDS=5 POISONED=50 HELD_OPEN_SECONDS=60 RUNNER_KILLS=50 UPGRADES=5 UPLOAD_KILLS=20 \
	  RACE_ROUNDS=200 REBUILD_KILLS=10 REBUILT_TICKETS=300 TAMPERINGS=1000 BUNDLE_FLIPS=all \
	  EXAMPLES=200 READER_KILLS=24 KILLED_IMPORT=800 \
	  exec $(BIN)/python -m pytest -n 0 -v tests/faults tests/tickets/test_tampering.py tests/projections/test_bundle.py \
	  tests/tickets/test_properties.py \
	  tests/projections/test_rebuild.py::test_killed_again_and_again_it_goes_on_where_it_was_and_makes_the_same \
	  tests/api/test_events.py::test_readers_who_are_killed_and_come_again_are_told_every_fact_once_and_in_order \
	  tests/api/test_servicenow.py::test_an_import_killed_half_way_and_started_again_ends_the_same \
	  tests/api/test_commands.py::test_of_64_at_once_with_the_same_if_match_one_wins_each_round

check: $(READY) ## Lint, format, strict types, and the shape of the house
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/mypy
	@exec $(BIN)/python -m pytest tests/architecture.py

bench: $(READY) ## Measure, side by side with what else there is
	@exec $(BIN)/python -m benchmarks

LOCK = uv pip compile pyproject.toml requirements.in --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
  --no-emit-package django --no-emit-package asgiref --no-emit-package sqlparse --no-emit-package ticket-service

lock:           ## Pin anew what pyproject.toml asks for (needs uv): for development, and of that what the image needs
	$(LOCK) --upgrade --extra dev --output-file requirements.lock
	$(LOCK) --constraint requirements.lock --output-file requirements.image.lock

clean:          ## Remove what was installed; data in ./var stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
