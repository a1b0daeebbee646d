"""A Linux guest's interfaces: found by MAC, given address, MTU and route, in a network namespace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from guest_programs import compile_network  # type: ignore[import-not-found]

CHILD = Path(__file__).resolve().parent / "namespace_child.py"
ONE, TWO, THREE = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raise_networks, under the sanitizers."""
    made: Path = compile_network(tmp_path_factory.mktemp("network") / "network")
    return made


def set_up(program: Path, tmp_path: Path, text: str, *after: str, **interfaces: str) -> dict[str, Any]:
    files = [tmp_path / f"networks.{number}" for number in range(1 + len(after))]
    for file, content in zip(files, (text, *after), strict=True):
        file.write_text(content)
    order = {"interfaces": interfaces, "program": [str(program), *map(str, files)], "macs": bool(after)}
    done = subprocess.run(
        [sys.executable, CHILD], input=json.dumps(order), capture_output=True, text=True, check=False, timeout=30
    )
    if "unshare" in done.stderr:
        pytest.skip("this user may not make network namespaces")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["status"] == 0, found["output"]
    return found


def test_interfaces_are_found_by_mac_and_set_up(program: Path, tmp_path: Path) -> None:
    """In whatever order they come: a driver and a bus decide that."""
    text = f"lan {TWO} 10.7.0.9/24 1400 10.7.0.1\nwan {ONE.upper()} 172.16.0.2/20 9000 -\nbare {THREE} - 1500 -\n"
    found = set_up(program, tmp_path, text, eth0=ONE, eth1=THREE, eth2=TWO)
    assert found["output"] == ""
    assert found["interfaces"] == {
        "eth0": {"up": True, "mtu": 9000, "addresses": [["172.16.0.2", 20, "172.16.15.255"]]},
        "eth1": {"up": True, "mtu": 1500, "addresses": []},
        "eth2": {"up": True, "mtu": 1400, "addresses": [["10.7.0.9", 24, "10.7.0.255"]]},
    }
    assert found["gateways"] == ["10.7.0.1"]


def test_what_cannot_be_done_is_told_and_the_rest_is_done(program: Path, tmp_path: Path) -> None:
    text = (
        f"gone {TWO} 10.7.0.9/24 1500 -\n"
        f"odd {ONE} 10.7.0.9 1500 -\n"
        "words\n"
        f"odder {ONE} 10.7.0.9/24 1500 nowhere\n"
        f"far {THREE} 10.9.0.2/24 1500 10.200.0.1\n"
        "\n"
        f"lan {ONE} 10.7.0.9/24 1500 -\n"
    )
    found = set_up(program, tmp_path, text, eth0=ONE, eth1=THREE)
    assert found["interfaces"]["eth0"]["addresses"] == [["10.7.0.9", 24, "10.7.0.255"]]
    said = found["output"].splitlines()
    assert said[0].startswith("hostd: init: network gone: no interface has its MAC address")
    assert [line.partition(": not NETWORK")[1] != "" for line in said[1:4]] == [True] * 3
    assert said[4:] == ["hostd: init: network far: eth1: the route to its gateway: Network is unreachable"]


def test_a_guest_without_networks(program: Path, tmp_path: Path) -> None:
    done = subprocess.run([program, tmp_path / "absent"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_clone_takes_its_own_addresses_in_place_of_the_templates(program: Path, tmp_path: Path) -> None:
    before = f"lan {ONE} 10.7.0.9/24 1400 10.7.0.1\nwan {TWO} 172.16.0.2/20 1500 -\n"
    after = "lan 02:00:00:00:00:21 10.7.0.33/24 1400 10.7.0.1\nwan 02:00:00:00:00:22 172.16.0.7/20 1500 -\n"
    found = set_up(program, tmp_path, before, after, eth0=ONE, eth1=TWO)
    assert found["output"] == ""
    assert found["interfaces"] == {
        "eth0": {
            "up": True,
            "mtu": 1400,
            "mac": "02:00:00:00:00:21",
            "addresses": [["10.7.0.33", 24, "10.7.0.255"]],
        },
        "eth1": {
            "up": True,
            "mtu": 1500,
            "mac": "02:00:00:00:00:22",
            "addresses": [["172.16.0.7", 20, "172.16.15.255"]],
        },
    }
    assert found["gateways"] == ["10.7.0.1"]
