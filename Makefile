# Every target is safe to run again. PYTHON names the interpreter that makes the environments (3.11 or 3.12).
PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
BIN := .venv/bin
SOURCES := kit quotas scheduler serving heliu benchmarks tests
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo down test check format lint types imports dependencies spelling

help: ## List the targets
	@echo 'Heliu. On a fresh machine: make demo'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  ARGS=…        what `make demo` and `make test` pass on, e.g. ARGS=--exit, ARGS="-k ledger"'
	@echo '  WORKERS=0     `make test` in one process instead of two'
	@echo '  HELIU_ENGINE=cuda   vLLM for GPUs instead of its CPU build;  HELIU_HOME=…  where state lives (.heliu)'

setup: ## Make both environments and the model (first time about 3 min, 6 GB)
	@$(PYTHON) heliu/bootstrap.py all

demo: ## Set up, start the platform, play the story, leave it running
	@$(PYTHON) heliu/bootstrap.py check all
	@$(BIN)/heliu demo $(ARGS)

down: ## Stop everything `make demo` or `heliu up` started, and only that
	@if [ -x $(BIN)/heliu ]; then $(BIN)/heliu down; else echo 'nothing runs: Heliu is not set up here'; fi

test: ## Set up and pass every test, in two processes
	@$(PYTHON) heliu/bootstrap.py all
	@$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadscope --no-loadscope-reorder $(ARGS)

check: lint types imports dependencies spelling ## Everything that needs no running part: lint, types, imports, …

.venv-control:
	@$(PYTHON) heliu/bootstrap.py control
.PHONY: .venv-control

lint: .venv-control ## Rules and format (ruff)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

format: .venv-control ## Rewrite files to the format and mend what can be mended
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

types: .venv-control ## Types (basedpyright; strict on pure files)
	@$(BIN)/basedpyright --level error

imports: .venv-control ## Who may import what (import-linter)
	@$(BIN)/lint-imports --no-logo --no-cache # its cache forgets that an import may mean another file once that exists

dependencies: .venv-control ## Every import declared, every declaration imported (deptry)
	@$(BIN)/deptry kit quotas scheduler serving heliu

spelling: .venv-control ## Typing slips (codespell)
	@git ls-files -z | xargs -0 $(BIN)/codespell

bench-scheduler: .venv-control ## Placement policies side by side on a public trace
	@$(BIN)/python -m benchmarks.scheduler $(ARGS)

bench-routing: .venv-control ## The gateway's router beside others on a public trace
	@$(BIN)/python -m benchmarks.routing $(ARGS)

bench-ledger: .venv-control ## The ledger beside pgbench on the same server (ARGS=--quick: under a minute)
	@$(BIN)/python -m benchmarks.ledger $(ARGS)

bench-gateway: .venv-control ## The gateway beside vllm-router, gateway on one core (needs wrk; ARGS="--rounds 5")
	@$(BIN)/python -m benchmarks.gateway $(ARGS)

fuzz: .venv-control ## The gateway's HTTP and JSON under a million odd inputs, found by what they reach; none may leak
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[fuzz]'
	@$(BIN)/python -m tests.fuzz.protocol -runs=$${HELIU_FUZZ_RUNS:-1000000}

nightly: fuzz ## What takes hours: a million inputs, both schemas, the counting run, 2,000 storms
	@HELIU_FUZZ_EXAMPLES=350000 $(BIN)/python -m pytest -q --timeout=0 -p no:cacheprovider tests/unit/serving/gateway/test_fuzz.py
	@HELIU_SCHEMA_EXAMPLES=20000 $(BIN)/python -m pytest -q --timeout=0 -p no:cacheprovider tests/unit/serving/gateway/test_v1_schema.py tests/api/serving/test_api_schema.py
	@$(BIN)/python -m benchmarks.counting
	@$(BIN)/python -m tests.simulation --seeds $${HELIU_STORMS:-2000} --events 500

bench-counting: .venv-control ## 10,000 requests, cut off anywhere, gateways killed: billed against counted
	@$(BIN)/python -m benchmarks.counting $(ARGS)

.PHONY: fuzz nightly bench-counting bench-gateway bench-scheduler bench-routing bench-ledger
