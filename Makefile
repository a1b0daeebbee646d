# make demo: the main job from nothing.  make test: every test.  Both install what they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What turns into machine code; a change of one installs anew.
NATIVE := $(shell find shm hostd guestlib net -name '*.[ch]' -o -name '_build.py') hostd/building.py pyproject.toml

.PHONY: all install tools images demo test lab-first lab-second lint long clean

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

# What the lab and the tests of Linux guests take from Debian, as far as it is missing: program:package.
TOOLS := qemu-system-x86_64:qemu-system-x86 iasl:acpica-tools busybox:busybox-static mmdebstrap:mmdebstrap \
	mkfs.erofs:erofs-utils mke2fs:e2fsprogs lspci:pciutils cpio:cpio gdb:gdb tshark:tshark \
	nft:nftables dpdk-testpmd:dpdk-dev iperf3:iperf3

tools:
	@missing=; for tool in $(TOOLS); do command -v $${tool%%:*} >/dev/null || missing="$$missing $${tool#*:}"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

# With no KVM the demo runs in the lab, which needs the tools.
demo: install
	@$(CAN_RUN_GUESTS) || $(MAKE) --no-print-directory tools
	$(BIN)/python examples/demo.py

# The images that Linux guests boot in tests and examples.
images: install tools
	$(BIN)/hostd image kernel debian-cloud
	$(BIN)/hostd image kernel debian
	$(BIN)/hostd image rootfs debian

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Linux guests need a KVM that runs ring 0; the lab has one on any machine, and runs their tests in one boot: two labs of one
# CPU each, with about half of the tests. Where this host has no KVM at all, all tests that need one run there; those of
# unikernels want two CPUs.
LAB := $(BIN)/hostd lab --timeout 3600
LAB_TESTS := $(sort $(wildcard tests/lab/test_*.py))
LAB_FIRST := $(patsubst %,tests/lab/test_%.py,boot_raw exec_cp gdb_linux guestlib_linux paging_linux)
CAN_RUN_GUESTS := $(BIN)/python -c 'from hostd.doctor.probe import *; import sys; sys.exit(kvm_kind().value not in ("unikernel", "full"))'

test: install lint tools images
	$(BIN)/python -m pytest -n auto -q
	@$(CAN_RUN_GUESTS) || { echo "no KVM for guests here; all tests that need one, in the lab:"; \
		$(LAB) --cpus 2 -- python -m pytest -n 2 -q --only-kvm --ignore tests/lab; }
	@echo "the tests of Linux guests, in two labs side by side, about ten minutes:"
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lab-first lab-second

lab-first:
	$(LAB) -- python -m pytest -n 2 --dist loadfile -q $(LAB_FIRST)

lab-second:
	$(LAB) -- python -m pytest -n 2 --dist loadfile -q $(filter-out $(LAB_FIRST),$(LAB_TESTS))

# The long mode: a million cases for every fuzzer, a million round trips for every sleeper.
long: install
	HOSTD_LONG=1 $(BIN)/python -m pytest -n auto -q

clean:
	rm -rf $(VENV) build *.egg-info
	find . -name '*.so' -not -path './$(VENV)/*' -delete
