"""A key directory is seen as it is at each request, and read only when it changed."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tang_attest.errors import Unavailable
from tang_attest.keys import tang_dir
from tang_attest.keys.jwk import generate
from tang_attest.keys.tang_dir import TangDirectory
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.service.tang.plain import KeySet

Jwk = dict[str, object]


def settle() -> None:
    """Wait until no file is so young that it is read again."""
    time.sleep(0.06)


def write(directory: Path, **keys: Jwk) -> None:
    for name, jwk in keys.items():
        (directory / f"{name}.jwk").write_text(json.dumps(jwk))


def names(keys: KeySet) -> list[tuple[object, bool]]:
    """Alg of each key, and True if it is hidden."""
    return sorted((str(key.public["alg"]), key.hidden) for key in keys.keys)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path, sig=generate("ES512"), exc=generate("ECMR"))
    return tmp_path


def test_same_object_while_nothing_changes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unchanged files are not even opened, and nothing is signed again."""
    keys = TangDirectory(directory)
    settle()
    current = keys.current()
    advertisement = current.advertisement()
    monkeypatch.setattr(tang_dir, "_read_regular", lambda _: pytest.fail("a file was read"))
    assert keys.current() is current
    assert keys.current().advertisement() is advertisement


def test_cost(directory: Path) -> None:
    """Looking at four files takes well under a millisecond (on an idle machine 0.03 ms)."""
    write(directory, sig2=generate("ES512"), exc2=generate("ECMR"))
    keys = TangDirectory(directory)
    settle()
    keys.current()
    started = time.process_time()
    for _ in range(1000):
        keys.current()
    assert time.process_time() - started < 0.3


def test_key_added(directory: Path) -> None:
    keys = TangDirectory(directory)
    assert names(keys.current()) == [("ECMR", False), ("ES512", False)]
    write(directory, more=generate("ES256"))
    assert names(keys.current()) == [("ECMR", False), ("ES256", False), ("ES512", False)]


def test_key_hidden_and_removed(directory: Path) -> None:
    keys = TangDirectory(directory)
    settle()
    before = keys.current()
    (directory / "exc.jwk").rename(directory / ".exc.jwk")
    assert names(keys.current()) == [("ECMR", True), ("ES512", False)]
    assert keys.current().advertisement() != before.advertisement()
    (directory / ".exc.jwk").unlink()
    assert names(keys.current()) == [("ES512", False)]


def test_key_replaced(directory: Path) -> None:
    """Other content of the same size under the same name is seen, in the same tick of the clock as well."""
    keys = TangDirectory(directory)
    for _ in range(20):
        jwk = generate("ECMR")
        write(directory, exc=jwk)
        assert keys.current().find(thumbprint(jwk)) is not None


def test_key_with_an_old_time(directory: Path) -> None:
    """The time of a file's content can be set back (``cp -p``); that of its inode cannot."""
    keys = TangDirectory(directory)
    settle()
    keys.current()
    before = (directory / "exc.jwk").stat()
    jwk = generate("ECMR")
    write(directory, exc=jwk)
    os.utime(directory / "exc.jwk", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert keys.current().find(thumbprint(jwk)) is not None


def test_clock_set_back(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from the future, as a board without a battery has them, are not read at each request."""
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    keys = TangDirectory(directory)
    assert keys.current() is keys.current()


def test_keys_are_made(tmp_path: Path) -> None:
    """An empty directory gets a signing key and an exchange key for P-521, named by thumbprint, mode 0440."""
    made = TangDirectory(tmp_path).current()
    assert names(made) == [("ECMR", False), ("ES512", False)]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(f"{thumbprint(key.public)}.jwk" for key in made.keys)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o440}
    assert all(json.loads(path.read_text())["crv"] == "P-521" for path in tmp_path.iterdir())
    assert made.advertisement()


@pytest.mark.parametrize("hide", ["rename", "damage"])
def test_keys_are_made_beside_unusable_ones(directory: Path, hide: str) -> None:
    """Hidden files and files that are not JSON do not count, as with tangd."""
    keys = TangDirectory(directory)
    before = keys.current()
    for path in list(directory.iterdir()):
        if hide == "rename":
            path.rename(directory / f".{path.name}")
        else:
            path.write_text("{")
    after = keys.current()
    assert len(list(directory.iterdir())) == 4
    assert {thumbprint(key.public) for key in after.keys if not key.hidden}.isdisjoint(
        thumbprint(key.public) for key in before.keys
    )
    assert len(after.keys) == (4 if hide == "rename" else 2)


def test_no_key_is_made_beside_json(tmp_path: Path) -> None:
    """A visible file with JSON in it, whatever it says, is enough for tangd not to make keys."""
    write(tmp_path, odd={})
    assert TangDirectory(tmp_path).current().keys == ()
    assert [path.name for path in tmp_path.iterdir()] == ["odd.jwk"]


def test_makers_race(tmp_path: Path) -> None:
    """Of several servers that start at once over an empty directory one makes the keys; all have the same."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        seen = pool.map(advertised, [tmp_path] * 8)
    assert len(set(seen)) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_reader_waits_for_the_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames there is an exchange key alone: nobody takes that for the whole."""
    maker, reader = TangDirectory(tmp_path), TangDirectory(tmp_path)
    seen: list[KeySet] = []
    threads: list[threading.Thread] = []
    original = tang_dir._write

    def stalling(directory: Path, name: str, content: bytes) -> None:
        original(directory, name, content)
        if not threads:
            threads.append(threading.Thread(target=lambda: seen.append(reader.current())))
            threads[0].start()
            threads[0].join(0.2)
            assert not seen

    monkeypatch.setattr(tang_dir, "_write", stalling)
    made = maker.current()
    threads[0].join()
    assert names(seen[0]) == names(made)


def advertised(directory: Path) -> tuple[str, ...]:
    """The thumbprints that a new process finds."""
    return tuple(sorted(thumbprint(key.public) for key in TangDirectory(directory).current().keys))


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a key cannot be made durable there is no file of it, and the next request tries again."""
    keys = TangDirectory(tmp_path)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable, match="No space left on device"):
            keys.current()
    assert list(tmp_path.iterdir()) == []
    assert len(keys.current().keys) == 2


def test_directory_that_went_away(directory: Path) -> None:
    """Keys that were read before are not used when the directory cannot be read."""
    keys = TangDirectory(directory)
    keys.current()
    moved = directory.rename(directory.with_name("moved"))
    with pytest.raises(Unavailable) as refusal:
        keys.current()
    assert refusal.value.code == "unavailable"
    moved.rename(directory)
    assert len(keys.current().keys) == 2


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "make", [make_fifo, make_link_to_fifo, make_socket, make_device, make_large, Path.mkdir]
)
@pytest.mark.parametrize("name", ["odd.jwk", ".odd.jwk"])
def test_an_entry_that_is_no_small_regular_file_is_passed_over(
    directory: Path, make: Callable[[Path], None], name: str
) -> None:
    """It is neither waited for nor read without end, no descriptor stays open, and the other keys answer."""
    make(directory / name)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert names(TangDirectory(directory).current()) == [("ECMR", False), ("ES512", False)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
