"""Files are whole or absent, and a bad file gives one sentence."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TypedDict

import numpy as np
import pytest
import torch

from expost.system.files import (
    NotKept,
    Room,
    atomic,
    cache_folder,
    cached,
    check_output,
    is_sealed,
    load_tensors,
    read_json,
    read_meta,
    read_signed,
    save_tensors,
    seal,
    write_json,
    write_signed,
    write_text,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_text_and_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None], "b": "γ"}
    write_json(tmp_path / "deep" / "a.json", value)
    assert read_json(tmp_path / "deep" / "a.json", "x") == value
    write_text(tmp_path / "deep" / "a.json", "{}")
    assert read_json(tmp_path / "deep" / "a.json", "x") == {}
    assert names(tmp_path / "deep") == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == path.parent, "a rename is atomic within one folder"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("links", [True, False])
def test_of_several_writers_the_first_stays(tmp_path, monkeypatch, links):
    path, together, outcomes = tmp_path / "a.txt", threading.Barrier(4), []

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)

    def write(number: int) -> None:
        try:
            with atomic(path, replace=False) as temporary:
                temporary.write_text(str(number))
                together.wait()
            outcomes.append(number)
        except FileExistsError as error:
            outcomes.append(error.filename)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert outcomes.count(str(path)) == 3
    assert int(path.read_text()) in outcomes
    assert names(tmp_path) == ["a.txt"]
    with pytest.raises(FileExistsError), atomic(path, replace=False):
        pass
    write_text(path, "replaced")
    assert path.read_text() == "replaced"


def test_what_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    check_output(tmp_path / "new" / "folders" / "a.txt")
    check_output(tmp_path / "file")
    for path, sentence in {
        tmp_path: "is a folder",
        tmp_path / "file" / "a.txt": "file is a file: choose another folder",
        tmp_path / "pipe": "is a device or a pipe",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            check_output(path)
    with pytest.raises(ValueError, match=r"has room for .* bytes: free space there"):
        check_output(tmp_path / "a.txt", 2**70)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="is read-only: choose another folder"):
        check_output(tmp_path / "new" / "a.txt")
    assert names(tmp_path) == ["file", "pipe"]


def test_written_files_have_ordinary_permissions(tmp_path):
    write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """A process that rewrites one file for ever is killed at some moment: the file reads."""
    code = f"""
import torch
from expost.system.files import save_tensors
i = 0
while True:
    save_tensors({str(tmp_path / "t.safetensors")!r}, {{"x": torch.full((200_000,), float(i))}}, {{"i": i}})
    i += 1
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (tmp_path / "t.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    tensors, meta = load_tensors(tmp_path / "t.safetensors", "tensors")
    assert bool((tensors["x"] == meta["i"]).all())


def test_tensors_round_trip(tmp_path):
    path = tmp_path / "t.safetensors"
    tensors = {
        "float": torch.randn(3, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flag": torch.tensor(True),
        "transposed": torch.randn(3, 4).T,
        "half": torch.randn(2).bfloat16(),
        "empty": torch.zeros(0, 3),
        "gradient": torch.randn(2, requires_grad=True),
        "nan": torch.tensor(float("nan")),
    }
    save_tensors(path, tensors, {"step": 3, "best": float("inf")})
    loaded, meta = load_tensors(path, "tensors")
    assert meta == {"step": 3, "best": float("inf")}
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert loaded[name].shape == value.shape
        assert torch.equal(loaded[name].nan_to_num(7.0), value.detach().nan_to_num(7.0))


def test_tied_weights_are_saved(tmp_path):
    weight = torch.randn(4, 4)
    save_tensors(tmp_path / "t.safetensors", {"a": weight, "b": weight, "row": weight[1]})
    loaded, _ = load_tensors(tmp_path / "t.safetensors", "tensors")
    assert torch.equal(loaded["a"], weight)
    assert torch.equal(loaded["b"], weight)
    assert torch.equal(loaded["row"], weight[1])


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert text.count(". ") == 0
    return text


@pytest.mark.parametrize("keep", [0, 4, 60, -7])
def test_truncated_tensors(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"x": torch.randn(100)}, {"a": 1})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated or is not the weights of a run") as error:
        load_tensors(path, "the weights of a run")
    assert str(path) in one_sentence(error)


@pytest.mark.parametrize("content", [b"\x80\x04\x95pickled", b"PK\x03\x04 a zip", b"{}", os.urandom(500)])
def test_foreign_bytes(tmp_path, content):
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not the checkpoint"):
        load_tensors(path, "the checkpoint")


def test_tensors_of_another_program(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="was not written by expost") as error:
        load_tensors(tmp_path / "t.safetensors", "a density")
    one_sentence(error)


def test_missing_and_damaged(tmp_path):
    with pytest.raises(ValueError, match="does not exist: the weights is missing"):
        load_tensors(tmp_path / "none.safetensors", "the weights")
    with pytest.raises(ValueError, match="does not exist"):
        read_json(tmp_path / "none.json", "results")
    for content in (b"", b'{"a": 1', b"\xff\xfe\x00"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ValueError, match="damaged or is not results") as error:
            read_json(tmp_path / "bad.json", "results")
        one_sentence(error)


def test_cache_folder(tmp_path, monkeypatch):
    assert cache_folder("a", "b", root=tmp_path) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("c") == tmp_path / "xdg" / "expost" / "c"


# ---------------------------------------------------------------- accidents


def test_every_damage_is_noticed(tmp_path):
    """300 random accidents: a sentence, or what was written."""
    path, draws = tmp_path / "t.safetensors", random.Random(0)
    tensors, meta = {"a": torch.randn(40), "b": torch.arange(9).reshape(3, 3)}, {"step": 3, "text": "x" * 30}
    save_tensors(path, tensors, meta)
    whole, noticed = path.read_bytes(), 0
    for _ in range(300):
        at, length = draws.randrange(len(whole)), draws.randint(1, 20)
        noise = draws.randbytes(length)
        bit = bytes([whole[at] ^ 1 << draws.randrange(8)])
        path.write_bytes(
            whole[:at] + draws.choice([bit + whole[at + 1 :], noise + whole[at + length :], noise + whole[at:], whole[at + length :], b""])
        )
        try:
            loaded, found = load_tensors(path, "tensors")
        except ValueError:
            noticed += 1
            continue
        assert found == meta
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert noticed > 290


def test_older_files_have_no_checksum(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "t.safetensors", {"expost": '{"a": 1}'})
    assert load_tensors(tmp_path / "t.safetensors", "tensors")[1] == {"a": 1}


@pytest.mark.parametrize("said", ["null", "[]", "5", '{"step": "x"}', "{}", "[" * 5000, "{", '{"step": ' + "9" * 5000 + "}"])
def test_metadata_are_what_is_declared(tmp_path, said):
    from safetensors.torch import save_file

    class Step(TypedDict):
        step: int

    save_file({"x": torch.ones(2)}, tmp_path / "t.safetensors", {"expost": said})
    for read in (load_tensors, read_meta):
        with pytest.raises(ValueError, match="is not a state") as error:
            read(tmp_path / "t.safetensors", "a state", meta=Step)
        one_sentence(error)


def test_content_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: done.append("fsync") or fsync(*a))
    monkeypatch.setattr(os, "replace", lambda *a: done.append("replace") or replace(*a))
    write_text(tmp_path / "a.txt", "x")
    assert done == ["fsync", "replace", "fsync"], "the file, then its name, then the folder"
    write_text(tmp_path / "a.txt", "x", durable=False)
    assert done[3:] == ["replace"]


def test_what_killed_writers_left_is_removed(tmp_path):
    for _ in range(2):
        with atomic(tmp_path / "a.txt") as left:
            left.write_text("half")
        (tmp_path / "a.txt").rename(left)  # as if the process had died within the block
    assert len(names(tmp_path)) == 2, "they may be another's, at work"
    for left in (*tmp_path.iterdir(), tmp_path / ".a.txt.mine.tmp.txt"):
        left.touch()
        os.utime(left, (1, 1))
    write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == [".a.txt.mine.tmp.txt", "a.txt"]


@contextmanager
def small_disk(size):
    """Files of this process may have so many bytes: as on a full disk, without one."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path):
    tensors, text = tmp_path / "t.safetensors", tmp_path / "a.txt"
    save_tensors(tensors, {"x": torch.ones(3)})
    write_text(text, "old")
    for path, write in (
        (tensors, lambda: save_tensors(tensors, {"x": torch.zeros(5000)})),
        (text, lambda: write_text(text, "new" * 5000)),
        (tmp_path, lambda: Room(tmp_path, 10**4)),
    ):
        with small_disk(4096), pytest.raises(OSError, match="too large") as error:
            write()
        assert error.value.filename == str(path)
    assert load_tensors(tensors, "x")[0]["x"].tolist() == [1, 1, 1]
    assert text.read_text() == "old"
    assert names(tmp_path) == ["a.txt", "t.safetensors"]


def test_room_is_held_and_given_back(tmp_path):
    with Room(tmp_path, 2**22) as room:
        held = room._file.fileno()
        assert os.fstat(held).st_blocks * 512 >= 2**22
        room.resize(2**20)
        assert 2**20 <= os.fstat(held).st_blocks * 512 < 2**21
        assert names(tmp_path) == [], "it ends with the process, however that ends"
    with pytest.raises(OSError, match="No space left") as error:
        Room(tmp_path, 2**60)
    assert error.value.filename == str(tmp_path)


def test_what_cannot_be_kept_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = cache_folder("a", root=tmp_path / "file") / "b.json"
    for _ in range(2):
        with pytest.warns(NotKept, match="not kept: .*because a part of its path is a file"):
            assert cached(path, lambda p: read_json(p, "x"), lambda: [1], write_json) == [1]
    with small_disk(1), pytest.warns(NotKept, match=f"not kept: {tmp_path} cannot be written \\(file too large\\)"):
        assert cached(tmp_path / "b.json", lambda p: read_json(p, "x"), lambda: [1], write_json) == [1]
    assert names(tmp_path) == ["file"]


def test_a_damaged_cache_is_made_again(tmp_path):
    path, made = tmp_path / "b.json", []

    def value():
        return cached(
            path, lambda p: read_signed(p, "x", "delete it", dict, always=True), lambda: made.append(1) or {"a": 1.5}, write_signed
        )

    assert value() == value() == {"a": 1.5}
    assert made == [1]
    whole = path.read_bytes()
    for damaged in (b"", whole[:-5], whole.replace(b"1.5", b"2.5"), b"[]", b"null", b"[" * 5000, b"\xff", b'{"value": 3}'):
        path.write_bytes(damaged)
        made.clear()
        assert value() == {"a": 1.5}
        assert made == [1]
        assert path.read_bytes() == whole


def test_a_sealed_file_is_as_it_was(tmp_path):
    path = tmp_path / "f.npy"
    np.save(path, np.arange(5.0))
    assert not is_sealed(path)
    seal(path)
    assert is_sealed(path)
    assert np.load(path, mmap_mode="c").tolist() == [0, 1, 2, 3, 4]
    whole = path.read_bytes()
    for damaged in (bytes(len(whole)), whole[:-8] + bytes(8), whole[:-9] + whole[-8:], whole + b"x", whole[:9], b""):
        path.write_bytes(damaged)
        assert not is_sealed(path), "zeros are what a power cut leaves"
