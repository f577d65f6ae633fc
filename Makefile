# make demo    build example 1 for T4, A100 and L4 on this machine, no GPU needed
# make test    everything that passes on a CPU machine
# make check   format, lint, types (of tests/gpu too), import rules
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Farms mostly wait, so more test files run in parallel than there are cores; each sets its farm up once.
PARALLEL ?= -n 5 --dist loadfile
# With it, each of a suite's thousands of processes would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE

# make fuzz    ten minutes of hostile recipes, models, manifests and plans (MINUTES=1 for less)
# make chaos   an hour of killing parts of a real farm, then an audit (MINUTES=5 for less)
.PHONY: demo test test-unit test-gpu check bench nodes zoo chaos fuzz coverage audit install system-packages system-packages-demo clean

demo: system-packages-demo $(STAMP)
	$(BIN)/enginefarm build examples/01_efficientnet_lite0/recipe.yaml

test: system-packages $(STAMP)
	$(BIN)/pytest $(PARALLEL) -rs tests/unit tests/integration tests/farm tests/browser

test-unit: $(STAMP)
	$(BIN)/pytest $(PARALLEL) tests/unit

# On a machine with a GPU, pycuda and TensorRT; docs/measurements says what it needs.
test-gpu:
	sh tests/gpu/run.sh

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python --project tests/gpu
	$(BIN)/lint-imports

# Every benchmark that needs no GPU, one after the other, and all their figures in one table, also in
# docs/measurements/latest.md. It needs an idle machine and about half an hour.
# BENCHMARKS="pull tables" runs only those, and writes nothing.
BENCHMARKS ?=
bench: $(STAMP)
	$(BIN)/python -m benchmarks.gather $(BENCHMARKS)

# ONNX's backend test suites through the stages, compared with their expected outputs: 20 minutes on two
# cores. It resumes where it was stopped. NODES="--only lstm --jobs 2" for less.
NODES ?= --table docs/measurements/onnx-nodes.md
nodes: $(STAMP)
	$(BIN)/python -m benchmarks.nodes $(NODES)

# Third-party models for three GPUs and five precisions, with each published graph verified a second
# time: most of a day on two cores. It resumes where it was stopped. ZOO="--only magika" for less.
ZOO ?= --table docs/measurements/zoo.md
zoo: $(STAMP)
	$(BIN)/python -m benchmarks.zoo $(ZOO)

# Coverage of enginefarm/ by lines and branches, child processes included.
coverage: $(STAMP)
	rm -rf test-output/coverage
	sh tests/coverage/run.sh

# Known vulnerabilities of the locked versions, or NOT AUDITED if the service does not answer.
audit: $(STAMP)
	$(BIN)/python infra/audit.py

MINUTES ?= 60
fuzz: MINUTES = 10
fuzz: $(STAMP)
	nice -n 15 $(BIN)/python -m tests.unit.fuzz.run --minutes $(MINUTES)

chaos: $(STAMP)
	$(BIN)/python benchmarks/chaos.py --minutes $(MINUTES)

install: $(STAMP)

# constraints.txt is the lock: every version, resolved and tested together.
$(STAMP): pyproject.toml constraints.txt | system-packages-demo
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "enginefarm needs Python 3.11 or newer; set PYTHON=python3.x"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "this Python cannot make environments; apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar off -q -c constraints.txt -e '.[farm,torch,examples,dev]'
	touch $@

# What pip cannot install: python3-venv for both; a browser, PostgreSQL and a C compiler for the tests.
system-packages:
	@PYTHON=$(PYTHON) sh infra/system-packages.sh test

system-packages-demo:
	@PYTHON=$(PYTHON) sh infra/system-packages.sh demo

clean:
	rm -rf $(VENV) test-output
