"""Files are whole or absent, and a bad file gives one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from expost.files import atomic, cache_folder, load_tensors, read_json, save_tensors, write_json, write_text


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


def test_written_files_have_ordinary_permissions(tmp_path):
    write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """A process that rewrites one file for ever is killed at some moment: the file reads."""
    code = f"""
import torch
from expost.files import save_tensors
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
