"""Tests that need a KVM that runs Linux guests: `make test` runs this folder inside the lab, in one boot."""

from __future__ import annotations

import os

if "HOSTD_LAB" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
