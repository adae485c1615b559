# Everything a fresh machine needs: `make serve` and `make test`. Both install what they use into .venv.
PYTHON ?= python3
# more of pyproject.toml's optional dependencies, as EXTRAS=torch,eval; `gpu` takes the place of `cpu`, another build of
# one library
EXTRAS ?=
comma := ,
WANTED := $(if $(filter gpu,$(subst $(comma), ,$(EXTRAS))),,cpu$(if $(EXTRAS),$(comma)))$(EXTRAS)
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
INSTALL := scripts/install.sh $(BIN)/python
# every package of the service with its hashes; `make lock` writes them
HASHED := requirements/$(if $(filter gpu,$(subst $(comma), ,$(EXTRAS))),gpu,cpu).txt
KERNELS := $(wildcard $(addprefix app/rerankd/engines/onnx/kernels/,*.cpp *.h isa/*.cpp isa/*.h))
WORDPIECE := app/rerankd/scorers/wordpiece/module.cpp
FROZEN := pyproject.toml constraints.txt $(HASHED) requirements/build.txt setup.py $(KERNELS) $(WORDPIECE)
CXX_SOURCES := $(KERNELS) $(WORDPIECE) $(wildcard tests/sanitizers/*.cpp tests/sanitizers/*.h)
# A file's tests stay together, for the servers that they share; tests/conftest.py brings the longest forward.
IN_PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 12

.PHONY: serve install test test-fast coverage check format conformance fuzz growth amplification audit bench docs package sbom docker clean help FORCE

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

serve: install ## install the service and serve the shipped model (make serve PORT=8123)
	$(BIN)/rerankd serve --host $(HOST) --port $(PORT)

install: $(VENV)/.service ## install the service, and what EXTRAS names (make install EXTRAS=torch,eval)
	$(if $(EXTRAS),@echo "installing $(EXTRAS) into $(VENV)")
	$(if $(EXTRAS),@$(INSTALL) -e '.[$(WANTED)]')

test: $(VENV)/.development servers ## every test
	$(BIN)/python -m pytest -m "not timed" $(IN_PARALLEL) $(ARGS)
	$(BIN)/python -m pytest -m timed $(ARGS)

test-fast: $(VENV)/.development servers ## the tests that take no minute
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

coverage: $(VENV)/.development servers ## which lines and branches the tests reach; fails below its limits
	$(BIN)/python -m pytest -m "not timed and not uncovered" $(IN_PARALLEL) --cov --cov-report= $(ARGS)
	$(BIN)/python -m coverage report --fail-under=95
	$(BIN)/python -m coverage report --fail-under=100 --include="app/rerankd/batching/admission.py,app/rerankd/batching/cost.py,app/rerankd/batching/planner.py,app/rerankd/cache/keys.py,app/rerankd/scorers/ranking.py"

check: $(VENV)/.development ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.development ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)
	$(BIN)/ruff check --fix .

conformance: $(VENV)/.development ## real client libraries against a real server; writes the table of docs/clients.md
	$(BIN)/python -m tests.conformance.suite

fuzz: $(VENV)/.development ## generated requests for the whole OpenAPI document (make fuzz ARGS="--max-examples 5000")
	$(BIN)/python -m tests.fuzz --max-examples 500 $(ARGS)

growth: $(VENV)/.development ## memory after thousands of requests of each kind (make growth ARGS="--requests 10000")
	$(BIN)/python -m loadtest.growth --registry tests/data/registry.toml $(ARGS)

amplification: $(VENV)/.development ## what hostile bodies cost beside their bytes, field by field (20 minutes)
	$(BIN)/python -m loadtest.amplification --registry tests/data/registry.toml $(ARGS)

audit: $(VENV)/.python ## known vulnerabilities of the pinned packages; asks a service on the network
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'
	@$(VENV)/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip $(ARGS) || { echo "rerankd: \
this asks a database of vulnerabilities on the network, and cannot work without it. If no vulnerability is named above, \
but a connection that failed or a package that was not found, then nothing was checked." >&2; exit 1; }

lock: $(VENV)/.python ## write requirements/*.txt, every package with its hashes, from constraints.txt; needs the network
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	scripts/lock.sh $(VENV)/lock/bin/uv

sbom: ## write what is in each image, with hashes, as CycloneDX: dist/sbom-*.cdx.json
	@mkdir -p dist
	@for image in cpu torch gpu; do $(PYTHON) scripts/sbom.py $$image >dist/sbom-$$image.cdx.json; done

pin: ## write digests behind the tags of the images that we build on and start; needs docker and the network
	scripts/pin_images.sh

bench: $(VENV)/.development ## `rerankd bench` against a service that it starts (loadtest/README.md)
	$(BIN)/python -m loadtest $(ARGS)

docs: $(VENV)/.development ## build docs/ as a site, build/site; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

package: $(VENV)/.development ## build the sdist and the wheel into dist/
	$(BIN)/python -m build

docker: ## build the CPU image
	docker build --target cpu --tag rerankd:cpu .

clean: ## remove the environment and every cache
	rm -rf $(VENV) .clients .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage* build dist app/*.egg-info

.PHONY: servers
servers: ## the real servers that integration tests start
	@tests/install_servers.sh

FORCE:

# Looked at by every target that needs it; a file that the script leaves alone makes nothing else out of date.
$(VENV)/.python: FORCE
	@MAKECMDGOALS="$(MAKECMDGOALS)" scripts/environment.sh $(VENV) "$(PYTHON)" $(if $(filter file,$(origin PYTHON)),,explicit)

$(VENV)/.service: $(VENV)/.python $(FROZEN)
	@echo "installing the service into $(VENV): about 60 MB to download, about a minute"
	@$(INSTALL) --require-hashes -r $(HASHED) -r requirements/build.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@$(BIN)/python -m rerankd.engines.onnx.kernel_support || true # without them it serves, but slower
	@touch $@

# torch alone and first: a plain range would let pip take a build that is several times larger
$(VENV)/.development: $(VENV)/.python $(FROZEN)
	@echo "installing the service and its development tools into $(VENV): about 700 MB, several minutes"
	@$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	@$(INSTALL) -e '.[cpu,torch,dev]'
	@touch $@ $(VENV)/.service
