# make demo: the main job from nothing.  make test: every test.  Both install what they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What turns into machine code; a change of one installs anew.
NATIVE := $(shell find shm hostd guestlib -name '*.[ch]' -o -name '_build.py') hostd/building.py pyproject.toml

.PHONY: all install demo test lint long clean

all: install

install: $(VENV)/.installed

# A compiler and Python's headers are all that PyPI can't give.
$(VENV)/.installed: $(NATIVE)
	@command -v gcc >/dev/null || { echo "installing gcc"; apt-get update -qq && apt-get install -y -qq gcc libc6-dev; }
	@$(PYTHON) -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| { echo "installing Python's headers"; apt-get update -qq && apt-get install -y -qq python3-dev; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'setuptools>=77' 'pip>=24' wheel
	@echo "installing into $(VENV)"; PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

demo: install
	$(BIN)/python examples/demo.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install lint
	$(BIN)/python -m pytest -n auto -q

# The long mode: a million cases for every fuzzer, a million round trips for every sleeper.
long: install
	HOSTD_LONG=1 $(BIN)/python -m pytest -n auto -q

clean:
	rm -rf $(VENV) build *.egg-info
	find . -name '*.so' -not -path './$(VENV)/*' -delete
