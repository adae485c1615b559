# Everything a fresh machine needs: `make serve` and `make test`. Both install what they use into .venv.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FROZEN := pyproject.toml constraints.txt setup.py $(wildcard app/engines/kernels/*.cpp app/engines/kernels/*.h)
# A file's tests stay together, for the servers that they share; tests/conftest.py brings the longest forward.
IN_PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 12

.PHONY: serve test test-fast check format conformance fuzz audit bench docker clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

serve: $(VENV)/.service ## install the service and serve the shipped model (make serve PORT=8123)
	$(BIN)/rerankd serve --host $(HOST) --port $(PORT)

test: $(VENV)/.development servers ## every test, with coverage
	$(BIN)/python -m pytest -m "not timed" $(IN_PARALLEL) --cov --cov-report= $(ARGS)
	$(BIN)/python -m pytest -m timed $(ARGS)
	$(BIN)/python -m coverage report --fail-under=95
	$(BIN)/python -m coverage report --fail-under=100 --include="app/batching/admission.py,app/batching/cost.py,app/batching/planner.py,app/cache/keys.py,app/ranking.py"

test-fast: $(VENV)/.development servers ## the tests that take no minute
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

check: $(VENV)/.development ## lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.development ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

conformance: $(VENV)/.development ## real client libraries against a real server; writes the table of docs/clients.md
	$(BIN)/python -m tests.conformance.suite

fuzz: $(VENV)/.development ## generated requests for the whole OpenAPI document (make fuzz ARGS="--max-examples 5000")
	$(BIN)/python -m tests.fuzz --max-examples 500 $(ARGS)

audit: $(VENV)/.python ## known vulnerabilities of the pinned packages; asks a service on the network
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'
	$(VENV)/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip $(ARGS)

bench: $(VENV)/.development ## `rerankd bench` against a service that it starts (loadtest/README.md)
	$(BIN)/python -m loadtest $(ARGS)

docker: ## build the CPU image
	docker build --target cpu --tag rerankd:cpu .

clean: ## remove the environment and every cache
	rm -rf $(VENV) .clients .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage* build *.egg-info

.PHONY: servers
servers: ## the real servers that integration tests start
	@tests/install_servers.sh

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.service: $(VENV)/.python $(FROZEN)
	@echo "installing the service into $(VENV)"
	$(PIP) -e '.[cpu]'
	@touch $@

# torch alone and first: a plain range would let pip take a build that is several times larger
$(VENV)/.development: $(VENV)/.python $(FROZEN)
	@echo "installing the service and its development tools into $(VENV)"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[cpu,torch,dev]'
	@touch $@ $(VENV)/.service
