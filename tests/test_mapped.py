"""Data larger than memory, at a small size: the limit is lowered. Whatever is mapped must be bit for bit what is loaded into memory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

import expost
from expost.data import load, mapped
from expost.objectives import ELBO
from expost.train import fit as train
from expost.train.settings import Training
from toys import convolutional


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "expost" / "data"


def make(kind: str, root: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (90, 8, 8), dtype=np.uint8)
    root.mkdir()
    if kind == "folder":
        for i, image in enumerate(x):
            (root / "ab"[i % 2]).mkdir(exist_ok=True)
            picture = Image.fromarray(image)
            (picture if i < 70 else picture.convert("RGB")).save(root / "ab"[i % 2] / f"{i:03}.png")  # grey at first
        return root
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        streams = [io.BytesIO() for _ in x]
        for image, stream in zip(x, streams, strict=True):
            Image.fromarray(image).save(stream, "PNG")
        pq.write_table(pa.table({"image": [s.getvalue() for s in streams], "label": list(range(90))}), root / "train.parquet")
        return root
    if kind == "npy":
        np.save(root / "x.npy", x)
        return root / "x.npy"
    if kind == "fortran":
        np.save(root / "x.npy", np.asfortranarray(x))
        return root / "x.npy"
    if kind == "points":
        np.save(root / "x.npy", rng.normal(size=(90, 60)))
        return root / "x.npy"
    save = np.savez if kind == "npz" else np.savez_compressed
    save(root / "x.npz", x_train=x[:60], x_test=x[60:], y_train=np.arange(60) % 3, y_test=np.arange(30) % 3)
    return root / "x.npz"


@pytest.mark.parametrize("kind", ["folder", "parquet", "npy", "fortran", "points", "npz", "npz compressed"])
def test_mapped_data_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, kind: str) -> None:
    place = make(kind, tmp_path / "data")
    how = {} if kind == "points" else {"pad_to": 12}
    memory = load(place, **how)
    assert not list(cache.glob("*.map"))
    monkeypatch.setattr(mapped, "LIMIT", 1000)
    made = load(place, **how)
    assert made.hash == memory.hash
    for part in ("train", "val", "test"):
        a, b = getattr(memory, part), getattr(made, part)
        assert torch.equal(a.x, b.x)
        assert (a.labels is None) == (b.labels is None)
        assert a.labels is None or torch.equal(a.labels, b.labels)
    assert any("mapped from" in note for note in made.notes)
    (file,) = cache.glob("*.map")
    assert file.stat().st_size == sum(part.x.nbytes for part in (made.train, made.val, made.test))
    before = file.stat().st_mtime_ns
    assert load(place, **how).hash == memory.hash
    assert file.stat().st_mtime_ns == before  # decoded once
    made.train.x[0].zero_()  # what is done to the tensor does not reach the file
    assert load(place, **how).hash == memory.hash

    content = bytearray(file.read_bytes())
    content[17] ^= 255
    file.write_bytes(content)
    assert load(place, **how).hash == memory.hash  # damage is noticed, and the file made again
    file.write_bytes(content[:-1])
    assert load(place, **how).hash == memory.hash
    other = load(place, **how, seed=1).hash
    assert other == load(place, **how, seed=1).hash
    assert other != memory.hash


def test_training_on_mapped_data_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make("npy", tmp_path / "data")
    weights = []
    for limit, ahead in ((None, 2**29), (1000, 0)):
        monkeypatch.setattr(mapped, "LIMIT", limit)
        monkeypatch.setattr(train, "READ_AHEAD", ahead)
        data, m = load(place), convolutional(seed=3)
        expost.fit(m, ELBO(), data.train, val=data.val, training=Training(epochs=3, batch_size=16), device="cpu")
        weights.append(torch.cat([v.double().flatten() for v in m.state_dict().values()]))
    assert torch.equal(*weights)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    place = make("npy", tmp_path / "data")
    monkeypatch.setattr(mapped, "LIMIT", 1000)
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match="free some, or set XDG_CACHE_HOME"):
        load(place)
    assert not list(cache.glob("*"))
