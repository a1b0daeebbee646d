"""The cluster file: what a good one means, and the one sentence for each mistake."""

from __future__ import annotations

import pathlib

import pytest

from hostd.cluster import ClusterFileError
from hostd.cluster.file import load
from hostd.cluster.model import Disk, Root

GOOD = """
[region.link]
size = "1MiB"

[region.text]
file = "book.txt"

[channel.up]
region = "link"
kind = "mpsc"
size = "128KiB"
max_message = 4096

[guest.worker]
program = ["worker.c", "more.c"]
memory = "8MiB"
count = 3
args = ["a", "b"]
env = { MODE = "fast" }
regions = { text = "ro" }
channels = { up = "send" }
cpu = 1
restart = "on-failure"

[guest.boss]
image = "boss.elf"
after = "worker"
channels = { up = "receive" }

[[guest.boss.slot]]
gpa = 0x200000000
size = "2MiB"
backing = "anonymous"
"""


@pytest.fixture
def write(tmp_path: pathlib.Path):
    def written(text: str, name: str = "good.toml") -> pathlib.Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


def test_a_good_file(write) -> None:
    path = write(GOOD)
    cluster = load(path)
    assert cluster.name == "good"
    worker, boss = cluster.guests["worker"], cluster.guests["boss"]
    assert worker.sources == (path.parent / "worker.c", path.parent / "more.c")
    assert (worker.memory, worker.count, worker.cpus, worker.restart) == (8 << 20, 3, (1,), "on-failure")
    assert worker.args == ("a", "b")
    assert worker.env == {"MODE": "fast"}
    assert boss.image == path.parent / "boss.elf"
    assert boss.after == ("worker",)
    assert boss.slots[0].gpa == 0x200000000
    assert cluster.regions["text"].file == path.parent / "book.txt"
    assert cluster.regions["link"].size == 1 << 20
    assert cluster.channels["up"].max_message == 4096


def test_overrides(write) -> None:
    overrides = [
        "guest.worker.count=200",
        "guest.worker.memory=4MiB",
        "guest.boss.env.KEY=some text",
        "cluster.name=other",
    ]
    cluster = load(write(GOOD), overrides)
    assert cluster.name == "other"
    assert cluster.guests["worker"].count == 200
    assert cluster.guests["worker"].memory == 4 << 20
    assert cluster.guests["boss"].env == {"KEY": "some text"}


MISTAKES = [
    (["guest.boss.memry=1"], "guest.boss.memry: unknown key; did you mean memory?"),
    (["gest.boss.memory=1"], "gest: unknown key; did you mean guest?"),
    (["guest.boss.memory=0"], "guest.boss.memory: a size of 0 holds nothing"),
    (["guest.boss.memory=5000"], "guest.boss.memory: 0x1388 is not aligned"),
    (["guest.boss.memory=12 parsecs"], "guest.boss.memory: '12 parsecs' is no size"),
    (["guest.boss.memory=99999TiB"], "more than any processor can address"),
    (["guest.boss.memory=true"], "guest.boss.memory: True is no size"),
    (["guest.boss.vcpus=2"], "guest.boss.vcpus: is no key of a unikernel"),
    (["guest.boss.reboot=end"], "guest.boss.reboot: is no key of a unikernel"),
    (['guest.none={kernel="debian", args=["x"]}'], "guest.none.args: is no key of a Linux guest"),
    (['guest.none={kernel="debian", vcpus=9}'], "guest.none.vcpus: "),
    (['guest.none={kernel="debian", files={x="y"}}'], "guest.none.files.x"),
    (['guest.none={kernel="debian", root={file="x", image="y"}}'], "guest.none.root.image: unknown key"),
    (["guest.boss.count=0"], "guest.boss.count: 0: must be greater than or equal to 1"),
    (["guest.boss.count=many"], "guest.boss.count: 'many'"),
    (["guest.boss=3"], "guest.boss: 3 is no table"),
    (["guest.Boss.image=x"], "guest.Boss: 'Boss' is no valid name"),
    (["guest.boss.args=[1]"], "guest.boss.args.0: 1: is no string"),
    (["guest.boss.restart=maybe"], "guest.boss.restart: 'maybe' is not one of 'no', 'on-failure' or 'always'"),
    (["guest.boss.program=x.c"], "guest.boss: give one of program"),
    (["guest.none={}"], "guest.none: give one of program"),
    (["guest.boss.after=nobody"], "guest.boss.after: guest 'nobody' is not declared"),
    (["guest.boss.regions.txt=ro"], "guest.boss.regions.txt: region 'txt' is not declared; did you mean text?"),
    (["guest.boss.regions.text=wo"], "guest.boss.regions.text: 'wo' is not one of 'rw' or 'ro'"),
    (["guest.boss.channels.upp=send"], "guest.boss.channels.upp: channel 'upp' is not declared; did you mean up?"),
    (["guest.boss.channels.up=join"], "guest.boss.channels.up: a mpsc channel takes send or receive, not 'join'"),
    (["channel.up.region=text"], "channel.up.region: region 'text' is a file, which holds no channels"),
    (["channel.up.region=lnk"], "channel.up.region: region 'lnk' is not declared; did you mean link?"),
    (["channel.up.kind=ring"], "channel.up.kind: 'ring' is not one of"),
    (["region.text.size=4096"], "region.text: file maps a whole file"),
    (["region.link.backing=tape"], "region.link.backing: 'tape' is not one of 'shm' or 'hugetlb'"),
    (["guest.boss.regions.link=ro"], "guest.boss.channels.up: 'receive' writes to region 'link'"),
    (["guest.boss.slot=[{gpa=4097, size=4096, backing='anonymous'}]"], "0x1001 is not aligned"),
    (["guest.boss.slot=[{gpa=4096, size=0, backing='anonymous'}]"], "slot.0.size: a size of 0 holds nothing"),
    (["guest.boss.slot=[{gpa=4096, size=4096, backing='file'}]"], "backing 'file' needs a path"),
    (
        [
            "guest.boss.slot=[{name='a', gpa=0x200000000, size=8192, backing='anonymous'},"
            "{name='b', gpa=0x200001000, size=4096, backing='anonymous'}]"
        ],
        "guest.boss.slot: a (0x200000000 to 0x200002000) and b (from 0x200001000) overlap",
    ),
    (["cluster.name=a/b"], "cluster.name: 'a/b' is not allowed"),
    (["count"], "--set count: is no override"),
    (["guest.boss.image.x=1"], "--set guest.boss.image.x=1: guest.boss.image is a value and has no keys"),
]


@pytest.mark.parametrize(
    ("overrides", "sentence"), MISTAKES, ids=lambda value: value[0][:60] if isinstance(value, list) else ""
)
def test_a_mistake_is_one_sentence_with_file_and_key(write, overrides: list[str], sentence: str) -> None:
    path = write(GOOD)
    with pytest.raises(ClusterFileError) as raised:
        load(path, overrides)
    text = str(raised.value)
    assert sentence in text
    assert "\n" not in text
    assert text.startswith((f"{path}: ", "--set "))


def test_files_that_are_none(write, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ClusterFileError, match="no such cluster file"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ClusterFileError, match="cannot be read: Is a directory"):
        load(tmp_path)
    with pytest.raises(ClusterFileError, match=r"is no TOML: .*line 2"):
        load(write("[region.a]\n= 3\n"))
    with pytest.raises(ClusterFileError, match="has no guest"):
        load(write("[region.a]\n"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(ClusterFileError, match="is no TOML"):
        load(binary)


def test_a_file_whose_name_names_no_cluster(write) -> None:
    with pytest.raises(ClusterFileError, match="cannot name the cluster"):
        load(write(GOOD, "My Cluster.toml"))
    assert load(write(GOOD, "My Cluster.toml"), ["cluster.name=mine"]).name == "mine"


def test_a_linux_guest(write) -> None:
    path = write(
        """
        [region.link]
        [channel.talk]
        region = "link"
        [guest.web]
        kernel = "debian-cloud"
        root = "debian"
        vcpus = 2
        command = ["python3", "/root/x.py"]
        files = {"/root/x.py" = "x.py"}
        channels = {talk = "send"}
        [[guest.web.disk]]
        file = "./data.img"
        access = "shared"
        [guest.plain]
        kernel = "./vmlinux"
        """
    )
    web, plain = load(path).guests.values()
    assert web.linux is not None
    assert plain.linux is not None
    assert (web.linux.kernel, web.memory, web.linux.vcpus) == ("debian-cloud", 256 << 20, 2)
    assert web.linux.root == Root(Disk("debian", "pmem", "ro"), overlay=True, dax=True)
    assert web.linux.disks == (Disk(str(path.parent / "data.img"), "blk", "shared"),)
    assert web.linux.files == {"/root/x.py": path.parent / "x.py"}
    assert plain.linux.kernel == str(path.parent / "vmlinux")
    assert plain.linux.root is None
