# Everything here needs Python 3.11 and make, no more: `.venv` is built from lock files with hashes.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
UV := $(BIN)/uv
PEERS := $(patsubst bench/peers/%/requirements.in,%,$(wildcard bench/peers/*/requirements.in))
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(READY) ## Run a shop's jobs on embedded servers, kill a worker, count what happened (ARGS=… go to `worker demo`)
	$(BIN)/worker demo $(ARGS)

.PHONY: test
test: $(READY) .arq/.ready ## Run every test against embedded PostgreSQL and Valkey (ARGS=… go to pytest)
	$(BIN)/pytest -n 4 --dist loadgroup $(ARGS)

.PHONY: dev
dev: $(READY) ## Run the embedded servers and a worker until Ctrl-C
	$(BIN)/worker dev $(ARGS)

.PHONY: bench
bench: $(READY) .bench/.ready $(PEERS:%=.bench/peers/%/.ready) ## Measure against arq, SAQ, taskiq, … and a plain loop (ARGS=--quick: in a few minutes; --help)
	$(BIN)/python -m bench $(ARGS)

.PHONY: chaos
chaos: $(READY) ## Break workers, servers and lines while 10,000 orders go through, and judge (ARGS='--seed 1 --orders 500 …'; --help)
	$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: faults
faults: $(READY) ## Strike a worker at every await in one way, for a minute or two (FAULTS=all: in every way; ARGS=… go to pytest)
	FAULTS=$(or $(FAULTS),one) $(BIN)/pytest -n 0 tests/faults -o faulthandler_timeout=7200 $(ARGS)

.PHONY: fuzz
fuzz: .fuzz/.ready ## Look for bytes that the decoder or the import can't take, guided by coverage (ARGS=-max_total_time=300; 30 s each)
	@mkdir -p .fuzz/found
	for target in messages files; do .fuzz/venv/bin/python -m tests.fuzz.guided $$target \
		-max_total_time=30 -artifact_prefix=.fuzz/found/ $(ARGS) || exit; done

.PHONY: lint
lint: $(READY) ## Check style, format, types and import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(MAKE) --no-print-directory -j 2 mypy pyright
	$(BIN)/lint-imports

.PHONY: mypy pyright
mypy pyright: $(READY)
	$(BIN)/$@

.PHONY: lock
lock: $(UV) ## Write requirements/*.txt anew from pyproject.toml (ARGS=--upgrade for newer versions)
	$(COMPILE) $(ARGS) requirements/build.in -o requirements/build.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra fast --extra fsspec --extra parquet -o requirements/runtime.txt
	$(COMPILE) $(ARGS) pyproject.toml requirements/build.in --extra dev \
		--constraints requirements/runtime.txt --constraints requirements/build.txt -o requirements/dev.txt
	$(COMPILE) $(ARGS) pyproject.toml requirements/arq-tests.in \
		--constraints requirements/runtime.txt -o requirements/arq-tests.txt
	$(COMPILE) --no-deps requirements/arq-sdist.in --constraints requirements/runtime.txt -o requirements/arq-sdist.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra fuzz --constraints requirements/runtime.txt -o requirements/fuzz.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra bench --constraints requirements/dev.txt -o requirements/bench.txt
	for peer in $(PEERS); do $(COMPILE) $(ARGS) bench/peers/$$peer/requirements.in -o bench/peers/$$peer/requirements.txt || exit; done

$(UV): requirements/build.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt
	@touch $@

$(READY): $(UV) requirements/dev.txt pyproject.toml
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# arq's own tests, which only its sdist holds, and an environment with the pytest that they were written for.
.arq/.ready: $(UV) requirements/arq-tests.txt requirements/arq-sdist.txt
	rm -rf .arq
	$(UV) venv --quiet --python $(BIN)/python .arq/venv
	$(UV) pip install --quiet --python .arq/venv/bin/python --require-hashes -r requirements/arq-tests.txt
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --require-hashes -r requirements/arq-sdist.txt \
		--no-deps --no-binary arq --no-build-isolation --dest .arq
	mkdir .arq/sdist
	tar -xzf .arq/arq-*.tar.gz -C .arq/sdist --strip-components 1
	@touch $@

# atheris has wheels for some Pythons only, so nothing else may need it.
.fuzz/.ready: $(UV) requirements/fuzz.txt
	$(UV) venv --quiet --clear --python $(BIN)/python .fuzz/venv
	$(UV) pip install --quiet --python .fuzz/venv/bin/python --require-hashes -r requirements/fuzz.txt
	@touch $@

# The plots' library, and an environment for each peer: none of them is needed for anything else.
.bench/.ready: $(READY) requirements/bench.txt
	@mkdir -p $(@D)
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/bench.txt
	@touch $@

.bench/peers/%/.ready: bench/peers/%/requirements.txt $(UV)
	$(UV) venv --quiet --clear --python $(BIN)/python $(@D)
	$(UV) pip install --quiet --python $(@D)/bin/python --require-hashes -r $<
	@touch $@
