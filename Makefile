# The three commands of a fresh machine. Only Python 3.11 or newer is assumed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Other libraries, to be held against: an environment of their own, since they pull in what lexray must not need.
PARITY_VENV := .venv-parity
PARITY_INSTALLED := $(PARITY_VENV)/.installed

.PHONY: install quickstart test lint parity slow timeouts long fuzz properties infra-lint infra-tables infra-rendered

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lexray needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/lexray harvest examples/quickstart/harvest.yaml
	$(BIN)/lexray sweep examples/quickstart/sweep.yaml

# By two processes, as many as the smallest machine has cores; each computes with one thread, and has one Ray for its files.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

parity: $(PARITY_INSTALLED)
	$(PARITY_VENV)/bin/python -m pytest -c tests/parity/pytest.ini tests/parity

# A torchvision whose build is not torch's cannot be imported, and libraries that only look whether it is there fail.
$(PARITY_INSTALLED): tests/parity/requirements.txt tests/parity/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lexray needs Python 3.11 or newer")'
	test -x $(PARITY_VENV)/bin/python || $(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/python -m pip install --quiet -c tests/parity/constraints.txt -r tests/parity/requirements.txt
	$(PARITY_VENV)/bin/python -c 'import torchvision' 2>/dev/null \
		|| $(PARITY_VENV)/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

# For an idle machine: a busy one runs into the time-outs by itself.
timeouts: $(INSTALLED)
	$(BIN)/python -m pytest -m timeouts

# More seeds of what the slow tests do with few.
long: $(INSTALLED)
	$(BIN)/python -m pytest -m long

slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

# Hostile documents for every reader of what others wrote.
FUZZ_S ?= 600
fuzz: $(INSTALLED)
	$(BIN)/python -m pytest -m fuzz tests/fuzz --fuzz-s $(FUZZ_S)

# Other examples than the quick suite's for every property, and more where the test names no number. A failure prints how
# to repeat it.
properties: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile=search \
		$$(grep -rl 'from hypothesis' tests --include='test_*.py' | grep -v -e tests/parity -e tests/fuzz)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# checkov pins many packages: an environment of its own. Offline; its exceptions are written in the files.
CHECKOV_VERSION := 3.3.30
CHECKOV_VENV := .venv-checkov
CHECKOV_INSTALLED := $(CHECKOV_VENV)/.installed-$(CHECKOV_VERSION)

$(CHECKOV_INSTALLED):
	test -x $(CHECKOV_VENV)/bin/python || $(PYTHON) -m venv $(CHECKOV_VENV)
	$(CHECKOV_VENV)/bin/python -m pip install --quiet 'checkov==$(CHECKOV_VERSION)'
	touch $@

infra-lint: $(CHECKOV_INSTALLED)
	$(CHECKOV_VENV)/bin/checkov --directory infra --framework terraform --skip-download --compact --quiet --skip-path '\.terraform/'

# The tables of infra/README.md, from the Terraform files.
infra-tables: $(INSTALLED)
	$(BIN)/python tests/infra/readme_tables.py

# What the templates render to, from an apply to a simulated AWS. Needs terraform.
infra-rendered: $(INSTALLED)
	$(BIN)/python tests/infra/render_again.py
