"""The store of images: what is in it is whole, whatever happened while it was made."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hostd import images
from hostd.images import ImageStoreError, store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hostd/images"


def add(name: str, kind: str = "rootfs", key: str = "1" * 64, content: bytes = b"content") -> store.Image:
    def make(path: Path) -> dict[str, object]:
        path.write_bytes(content)
        return {"said": content.decode()}

    return store.add(name, kind, key, make)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_an_image_is_found_by_name_and_kind() -> None:
    made = add("debian")
    assert images.resolve("debian", "rootfs") == made
    assert made.path.read_bytes() == b"content"
    assert (made.size, made.about) == (7, {"said": "content"})
    assert made.path.stat().st_mode & 0o777 == 0o644
    assert store.find("debian", "kernel") is None


@pytest.mark.parametrize(
    ("name", "kind", "command"),
    [
        ("debian-cloud", "kernel", "`hostd image kernel debian-cloud`"),
        ("mine", "kernel", "`hostd image kernel FILE --name mine`"),
        ("debian", "rootfs", "`hostd image rootfs debian`"),
        ("web", "rootfs", "`hostd image rootfs debian --name web`"),
        ("small", "initramfs", "`hostd image initramfs KERNEL --name small`"),
    ],
)
def test_an_image_that_is_missing_comes_with_the_command_that_makes_it(name: str, kind: str, command: str) -> None:
    with pytest.raises(ImageStoreError) as caught:
        images.resolve(name, kind)
    assert command in str(caught.value)


def test_the_same_key_is_made_once_and_another_replaces(cache: Path) -> None:
    add("debian.x")
    first = add("debian")
    assert add("debian", content=b"never written") == first
    second = add("debian", key="2" * 64, content=b"other")
    assert second.path.read_bytes() == b"other"
    assert first.path.read_bytes() == b"content", "who has just looked it up still finds it"
    third = add("debian", key="3" * 64)
    assert files(cache) == {
        "debian.json",
        third.path.name,
        second.path.name,
        "debian.x.json",
        "debian.x.1111111111111111",
    }
    store.remove("debian")
    assert files(cache) == {"debian.x.json", "debian.x.1111111111111111"}


def test_what_fails_in_the_middle_leaves_the_old_image_and_nothing_else(cache: Path) -> None:
    first = add("debian")

    def fail(path: Path) -> dict[str, object]:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add("debian", "rootfs", "2" * 64, fail)
    assert images.resolve("debian", "rootfs") == first
    assert files(cache) == {"debian.json", first.path.name}


def test_a_disk_that_is_full_is_one_sentence() -> None:
    def fail(path: Path) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    with pytest.raises(ImageStoreError, match="cannot be written: No space left on device"):
        store.add("debian", "rootfs", "1" * 64, fail)


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "x" * 65, "a b", "a\n"])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(ImageStoreError, match="is no name of an image"):
        add(name)
    assert store.find(name, "rootfs") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 1}', "\xff"])
def test_a_damaged_description_is_no_image(cache: Path, text: str) -> None:
    add("debian")
    (cache / "rootfs/debian.json").write_bytes(text.encode("latin-1"))
    assert store.images() == []
    assert add("debian").path.exists()


def test_an_image_without_its_file_is_none() -> None:
    add("debian").path.unlink()
    assert store.find("debian", "rootfs") is None
    assert add("debian").path.exists()


def test_a_cache_that_was_moved_is_still_good(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = add("debian")
    moved = cache.parent.parent / "moved"
    moved.mkdir()
    cache.parent.rename(moved / "hostd")
    monkeypatch.setenv("XDG_CACHE_HOME", str(moved))
    assert images.resolve("debian", "rootfs").path == moved / "hostd/images/rootfs" / made.path.name


def test_images_are_listed_and_removed(cache: Path) -> None:
    add("debian")
    add("debian", kind="kernel")
    add("web")
    assert [(image.kind, image.name) for image in store.images()] == [
        ("kernel", "debian"),
        ("rootfs", "debian"),
        ("rootfs", "web"),
    ]
    assert [image.kind for image in store.remove("debian", "kernel")] == ["kernel"]
    store.remove("debian")
    assert [image.name for image in store.images()] == ["web"]
    assert len(files(cache)) == 2
    with pytest.raises(ImageStoreError, match="there is no image 'debian'"):
        store.remove("debian")


def test_two_that_make_the_same_image_make_it_once() -> None:
    made = []
    barrier = threading.Barrier(2)

    def make(path: Path) -> dict[str, object]:
        made.append(path)
        path.write_bytes(b"x" * 100_000)
        return {}

    def work() -> None:
        barrier.wait()
        store.add("debian", "rootfs", "1" * 64, make)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
