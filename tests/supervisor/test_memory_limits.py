"""Nothing is preallocated, what can't be is said before it hurts, and who takes too much is the only one to go."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, Place, until

from hostd import Host
from hostd.cluster import ClusterFileError
from hostd.host import BackgroundCluster
from hostd.vmm.memory_group import MemoryGroup, remove_groups

MIB, GIB = 1 << 20, 1 << 30
PAIR = """
[guest.modest]
program = "{programs}/pages.c"
args = ["fill", "4"]
memory = "8MiB"
[guest.greedy]
program = "{programs}/pages.c"
args = ["fill", "96"]
memory = "128MiB"
after = "modest"
"""
ONE = """
[guest.one]
program = "{programs}/sleeper.c"
memory = "16MiB"
"""
VERSION_1 = Path("/sys/fs/cgroup/memory")


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def pid_of(cluster: BackgroundCluster, name: str) -> int:
    return int(next(guest["pid"] for guest in cluster.ps()["guests"] if guest["name"] == name))


def test_a_guest_of_64_gib_starts_and_takes_what_it_touches(place: Place) -> None:
    text = PAIR.replace('["fill", "4"]', '["fill", "24"]').replace("8MiB", "64GiB").partition("[guest.greedy]")[0]
    with Host() as host:
        cluster = host.up(place.file(text))
        guest = cluster.guests["modest"]
        until(lambda: "filled" in guest.reports)
        rows = guest.slots()
        assert sum(row["size"] for row in rows) >= 64 * GIB - MIB
        assert 24 * MIB <= sum(row["resident"] for row in rows) <= 32 * MIB
        cluster.down()


def test_guests_are_killed_before_what_runs_them(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(ONE))
        pid = pid_of(cluster, "one")
        assert cluster._client is not None
        supervisor = cluster._client.hello["process"]["pid"]
        warm = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert score(supervisor) == score(warm) == score(os.getpid())
        assert score(pid) == min(1000, score(os.getpid()) + 500)
        cluster.down()


@pytest.fixture
def groups() -> None:
    """Skip where this user can make no memory control group."""
    group = MemoryGroup.make(f"test.{os.getpid()}", 64 * MIB)
    if group is None:
        pytest.skip("this user cannot make memory control groups")
    remove_groups([group.leftover])


@pytest.mark.usefixtures("groups")
def test_a_guest_above_its_limit_is_killed_alone_and_it_is_told(place: Place) -> None:
    with Host() as host:
        cluster = host.up(place.file(PAIR), overrides=["guest.greedy.limit=48MiB"])
        result = cluster.wait("greedy", timeout=20).guests["greedy"]
        assert (result.outcome, result.exit_code) == ("killed", 137)
        assert result.message.startswith("guest greedy: killed: out of memory, its limit is 48 MiB; raise `limit`")
        assert cluster.guests["modest"].result.outcome == "running"
        # What somebody else kills is not told as that.
        os.kill(pid_of(cluster, "modest"), 9)
        assert cluster.wait("modest", timeout=20).guests["modest"].message.endswith("was killed by SIGKILL")
        # The group is there for who is started again, and under a supervisor that took over.
        assert cluster._client is not None
        supervisor = cluster._client.hello["process"]["pid"]
        os.kill(supervisor, 9)
        until(lambda: not Path(f"/proc/{supervisor}").exists())
        cluster.guests["greedy"].start()
        until(lambda: cluster.guests["greedy"].result.outcome == "killed")
        assert "its limit is 48 MiB" in cluster.guests["greedy"].result.message
        cluster.down()
    assert not [path for path in groups_left() if place.names[0] in path]


def groups_left() -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").rglob("hostd.*") if path.is_dir()]


@pytest.mark.usefixtures("groups")
def test_when_all_is_full_the_greedy_one_goes(place: Place) -> None:
    """A control group around a whole cluster, supervisor and all, stands for a host that is full."""
    if not VERSION_1.exists():
        pytest.skip("with control groups of version 2, root's clusters are out of the group that they are started in")
    group = MemoryGroup.make(f"test.{os.getpid()}", 160 * MIB)
    assert group is not None
    file = place.file(PAIR)
    try:
        script = f"echo $$ > {group.path}/cgroup.procs; exec {sys.executable} -m hostd.cli up {file} --json"
        script += ' --set \'guest.greedy.args=["fill", "240"]\' --set guest.greedy.memory=256MiB'
        up = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
        assert up.returncode == 0, up.stderr
        with Host() as host:
            cluster = host.attach(file.stem)
            result = cluster.wait("greedy", timeout=30).guests["greedy"]
            assert result.outcome == "killed"
            assert "killed: the host, or the control group that hostd runs in, is out of memory" in result.message
            assert cluster.guests["modest"].result.outcome == "running"
            cluster.down()
    finally:
        remove_groups([group.leftover])


TOO_MUCH = [
    (["memory=16TiB", "overcommit=false"], r"guest.one.memory: 16384 GiB are to be there from the start \(`overcommit"),
    (["memory=16TiB", "prefault=true"], r"guest.one.memory: 16384 GiB are to be there from the start \(`prefault`"),
    (["memory=1GiB", "prefault=true", "count=1000"], r"guest.one.memory: 1000 GiB .* 1000 guests of one"),
    (["limit=4096"], r"guest.one.limit: 4096 bytes are too few; give at least 16777216"),
]


@pytest.mark.parametrize(("keys", "sentence"), TOO_MUCH, ids=lambda value: str(value)[:30])
def test_what_the_host_has_not_is_said_before_it_is_taken(place: Place, keys: list[str], sentence: str) -> None:
    with Host() as host, pytest.raises(ClusterFileError, match=sentence) as raised:
        host.run(place.file(ONE), overrides=[f"guest.one.{key}" for key in keys])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("command", ["run", "up"])
def test_too_low_a_limit_on_locked_memory_is_said(place: Place, command: str) -> None:
    """Without the capability to lock any amount, and with a limit that the guest's memory doesn't fit into."""
    file = place.file(ONE)
    prefix = ["prlimit", "--memlock=65536:65536"]
    if os.geteuid() == 0:
        prefix += ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
    arguments = [*prefix, sys.executable, "-m", "hostd.cli", command, str(file), "--set", "guest.one.lock=true"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT, timeout=30)
    assert done.returncode == 2
    assert done.stderr == (
        f"hostd {command}: {file}: guest.one.lock: its 16777216 bytes cannot be locked: RLIMIT_MEMLOCK is 65536 bytes "
        "for each guest; raise it (`ulimit -l`, LimitMEMLOCK= in a systemd unit, memlock in "
        "/etc/security/limits.conf) or leave `lock` out\n"
    )


def test_a_soft_limit_on_locked_memory_is_raised(place: Place) -> None:
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if hard != resource.RLIM_INFINITY and hard < 8 * MIB:
        pytest.skip(f"this user may lock {hard} bytes at most")
    file = place.file(ONE.replace("16MiB", "4MiB"))
    prefix = ["prlimit", "--memlock=65536:"]
    if os.geteuid() == 0:
        prefix += ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
    locked = ["--set", "guest.one.lock=true", "--set", 'guest.one.args=["1"]']
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "hostd.cli", "run", str(file), "--json", *locked],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["guests"]["one"]["outcome"] == "exit"
