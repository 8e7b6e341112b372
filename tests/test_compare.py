"""Any two sets of images: folders, numpy files, data sets; read part by part, cached by content, one sentence for what cannot be compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from expost.cli import main
from expost.evaluate.comparison import compare, image_set
from expost.evaluate.features.base import Pixels, Wrapped, extract
from expost.evaluate.features.sets import ArraySet, FolderSet
from expost.evaluate.metrics.frechet import frechet_distance
from expost.report import grid, save_picture
from expost.system.files import NotKept
from toys import pictures


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Path]:
    made = {name: pictures(n, seed=seed) for name, n, seed in (("a", 60, 1), ("b", 60, 2), ("train", 80, 3))}
    for name, x in made.items():
        np.save(tmp_path / f"{name}.npy", x.numpy())
    folder = tmp_path / "folder"
    for i, image in enumerate(made["a"]):
        save_picture(folder / f"{i:03d}.png", grid(image[None]))
    return {name: tmp_path / f"{name}.npy" for name in made} | {"folder": folder}


def test_numbers_are_those_of_features_in_memory(sets: dict[str, Path], tmp_path: Path) -> None:
    found = compare(str(sets["a"]), str(sets["b"]), str(sets["train"]), extractor="pixels", cache=tmp_path)
    a, b = (torch.from_numpy(np.load(sets[s])) for s in "ab")
    by_hand = frechet_distance(extract(Pixels((1, 8, 8)), a), extract(Pixels((1, 8, 8)), b))
    made = found["generated"]
    assert made["FD"].value == pytest.approx(by_hand.value, rel=1e-9)
    assert {"precision", "AuthPct", "F8"} <= made.keys()
    assert made["FD"].context["reference"] == "b.npy"
    assert list(found) == ["generated", "training images", "jittered training images", "shuffled pixels"]
    assert found["training images"]["AuthPct"].value == 0
    assert found["training images"]["copy distance"].value == 0
    assert found["jittered training images"]["copy distance"].value > 0
    alone = compare(str(sets["a"]), str(sets["b"]), extractor="pixels", cache=tmp_path)
    assert list(alone) == ["generated", "shuffled pixels"]
    assert list(compare(str(sets["a"]), str(sets["b"]), extractor="pixels", cache=tmp_path, controls=False)) == ["generated"]


def test_controls_are_the_same_in_whatever_parts_they_are_read(sets: dict[str, Path]) -> None:
    from expost.evaluate.comparison import _controls, drawn

    real, train = image_set(str(sets["b"])), image_set(str(sets["train"]))
    for name, images in _controls(real, train, 50, 3).items():
        whole = images.read(0, 50)
        assert len(images) == 50
        assert torch.equal(torch.cat([images.read(0, 7), images.read(7, 50)]), whole), name
    flat, same = images.read(0, 50).flatten(1), drawn(real, 50, 3).read(0, 50).flatten(1)
    assert torch.equal(flat.sort(1).values, same.sort(1).values)
    assert not torch.equal(flat, same)


def test_moments_alone_give_the_same_distance(sets: dict[str, Path], tmp_path: Path) -> None:
    whole = compare(str(sets["a"]), str(sets["b"]), extractor="random", groups=("fd", "kid"), cache=tmp_path)
    streamed = compare(str(sets["a"]), str(sets["b"]), extractor="random", groups=("fd",), cache=tmp_path)
    assert list(streamed["generated"]) == ["FD"]
    for row in ("generated", "shuffled pixels"):
        assert streamed[row]["FD"].value == pytest.approx(whole[row]["FD"].value, rel=1e-6)
    assert streamed["generated"]["FD"].context["n generated"] == 60
    kept = sorted((tmp_path / "moments").iterdir())
    assert len(kept) == 2  # of a and b; what is made up on the way is not kept
    again = compare(str(sets["a"]), str(sets["b"]), extractor="random", groups=("fd",), cache=tmp_path)
    assert again["generated"] == streamed["generated"]


def test_features_are_cached_by_content(sets: dict[str, Path], tmp_path: Path) -> None:
    arguments = {"extractor": "pixels", "groups": ("kid",), "cache": tmp_path}
    first = compare(str(sets["a"]), str(sets["b"]), **arguments)  # type: ignore[arg-type]
    files = sorted((tmp_path / "features").iterdir())
    assert len(files) == 2
    assert compare(str(sets["a"]), str(sets["b"]), **arguments)["generated"]["KID"] == first["generated"]["KID"]  # type: ignore[arg-type]
    np.save(sets["a"], 255 - np.load(sets["a"]))  # the same name, other images
    assert compare(str(sets["a"]), str(sets["b"]), **arguments)["generated"]["KID"].value != first["generated"]["KID"].value  # type: ignore[arg-type]
    assert len(sorted((tmp_path / "features").iterdir())) == 3


def test_first_images_and_data_sets_by_name(sets: dict[str, Path]) -> None:
    few, whole = image_set(str(sets["a"]), n=7), image_set(str(sets["a"])).read(0, 60)
    assert len(few) == 7
    found = [next(i for i in range(60) if torch.equal(whole[i], image)) for image in few.read(0, 7)]
    assert found == sorted(set(found))
    assert found != list(range(7))  # the first ones may all be of one class
    assert torch.equal(few.read(2, 5), few.read(0, 7)[2:5])
    assert image_set("digits").shape == (1, 8, 8)
    with pytest.raises(ValueError, match="at least 1"):
        image_set(str(sets["a"]), n=0)


def test_command_line(sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out = tmp_path / "result.json"
    arguments = ["compare", str(sets["a"]), str(sets["b"]), "--train", str(sets["train"]), "--extractor", "pca:8", "--out", str(out)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for name in ("FD[pca-8@", "KID", "F8", "precision", "coverage", "AuthPct", "C_T", "seed 0", "version", "jittered training images"):
        assert name in text
    assert json.loads(out.read_text())["generated"]["FD"]["context"]["extractor"].startswith("pca-8@")
    # pictures of a folder: colour as they were saved, so grey arrays do not fit
    assert main(["compare", str(sets["folder"]), str(sets["b"])]) == 2
    error = capsys.readouterr().err
    assert "bring them to one number of channels (--channels 3 reads grey pictures" in error
    assert error.count("\n") == 1
    assert main(["compare", str(sets["folder"]), str(sets["folder"]), "--extractor", "pixels", "--metrics", "fd"]) == 0
    assert main(["compare", str(sets["a"]), "/nowhere/b.npy"]) == 2
    assert main(["compare", str(sets["a"]), str(sets["b"]), "--extractor", "inceptoin"]) == 2
    assert "there is no extractor" in capsys.readouterr().err


def test_two_processes_print_one_table_with_the_numbers_of_one(sets: dict[str, Path], tmp_path: Path) -> None:
    """As a user would: the command under torchrun."""
    numbers = {}
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "expost"]
        command += [
            "compare",
            str(sets["a"]),
            str(sets["b"]),
            "--train",
            str(sets["train"]),
            "--out",
            str(out),
            "--metrics",
            "fd",
            "kid",
            "memorisation",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "XDG_CACHE_HOME": str(tmp_path / f"cache{count}")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("against") == 1
        numbers[count] = json.loads(out.read_text())
    assert numbers[1] == numbers[2]


def test_a_cache_knows_how_files_are_read_and_survives_damage(sets: dict[str, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.load(sets["a"]), b=np.load(sets["b"]))
    options = {"extractor": "pixels", "groups": ("fd", "kid"), "cache": tmp_path / "c", "controls": False}
    a, b = (ArraySet(tmp_path / "two.npz", key=key) for key in "ab")
    assert compare(a, b, **options)["generated"]["FD"].value > 0.1  # type: ignore[arg-type]
    small, cut = (FolderSet(sets["folder"], size=4, **crop) for crop in ({}, {"crop": 6}))
    first = compare(small, small, **options)["generated"]["FD"]  # type: ignore[arg-type]
    assert compare(cut, small, **options)["generated"]["FD"].value != first.value  # type: ignore[arg-type]
    whole = compare(a, b, **options)["generated"]  # type: ignore[arg-type]
    kept_files = {file: file.read_bytes() for file in (tmp_path / "c" / "features").iterdir()}
    for damage in (lambda kept: b"", lambda kept: kept[:200], lambda kept: kept[:128] + bytes(len(kept) - 128), lambda kept: kept[:-9]):
        for file, kept in kept_files.items():  # zeros are what a power cut leaves
            file.write_bytes(damage(kept))
        assert compare(a, b, **options)["generated"] == whole  # type: ignore[arg-type]
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(NotKept, match="not kept"):
        assert compare(a, b, **options | {"cache": tmp_path / "file"})["generated"] == whole  # type: ignore[arg-type, operator]
    moments = {**options, "groups": ("fd",)}
    expected = compare(a, b, **moments)["generated"]["FD"].value  # type: ignore[arg-type]
    for file in (tmp_path / "c" / "moments").iterdir():
        file.write_bytes(b"not a file of tensors")
    assert compare(a, b, **moments)["generated"]["FD"].value == expected  # type: ignore[arg-type]


def test_a_set_against_itself_on_the_command_line(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of a folder and an array of the same images are the same images; what is not given is a dash, in the controls too, and null."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    a, b, out = str(sets["a"]), str(sets["b"]), tmp_path / "out.json"
    shared = "of the generated images are in the reference set: FD∞ and KID assume independent sets"
    assert main(["compare", str(sets["folder"]), str(sets["folder"]), "--extractor", "pixels", "--no-controls"]) == 0
    text = capsys.readouterr().out
    assert f"note: 60 {shared}" in text
    assert not any(line.startswith("KID") for line in text.splitlines())
    assert main(["compare", a, b, "--train", b, "--extractor", "pixels", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"training images: 60 {shared}" in text
    assert "60 of the reference images are in the training set: C_T, copy distance and FLD assume unseen ones" in text
    found = json.loads(out.read_text())
    assert found["generated"]["KID"]["value"] is not None
    assert "KID" not in found["training images"]
    assert main(["compare", a, a, "--extractor", "pixels", "--metrics", "kid", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["generated"]["KID"]["value"] is None
    assert any(line.split()[:3] == ["KID", "-", "-"] for line in capsys.readouterr().out.splitlines())


def test_an_extractor_that_prefers_shuffled_pixels_is_told(tmp_path: Path) -> None:
    """Grey levels in order know nothing of structure: to them, shuffled pixels are the real images."""
    blind = Wrapped(lambda x: x.flatten(1).sort(1).values, name="sorted", dim=64, version="1")
    note = "shuffled pixels come nearer to real images"
    for groups, metric in ((("fd",), "FD"), (("fd", "neighbours"), "FD"), (("kid",), "KID")):
        real, made = pictures(60, seed=2), pictures(60, seed=1)
        for extractor, told in ((blind, metric == "FD"), (Pixels((1, 8, 8)), False)):
            found = compare(made, real, extractor=extractor, groups=groups, cache=tmp_path)["generated"][metric]
            assert any(text.startswith(note) for text in found.notes) == told


def test_tensors_and_what_cannot_be_said(sets: dict[str, Path], tmp_path: Path) -> None:
    x = pictures(50)
    assert compare(x, x, extractor="pixels", groups="fd", cache=tmp_path, controls=False)["generated"]["FD"].value == pytest.approx(
        0, abs=1e-9
    )
    with pytest.raises(ValueError, match="--train"):
        compare(x, x, groups=("memorisation",), cache=tmp_path)
    with pytest.raises(ValueError, match="takes nothing after a colon"):
        compare(x, x, extractor="pixels:3", cache=tmp_path)
    with pytest.raises(ValueError, match="no metrics are asked for"):
        compare(x, x, groups=(), cache=tmp_path)
    few = compare(x[:10], x, pictures(40, seed=4), extractor="pixels", cache=tmp_path)["generated"]
    assert "FD" in few
    assert any("no C_T" in note for result in few.values() for note in result.notes)
    assert len(compare(x, x, groups=("fd",), n=20, extractor="pixels", cache=tmp_path)["generated"]) == 1


def test_a_hash_of_inceptions_weights_is_checked_from_the_command_line(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"half of a download")
    wrong = "0" * 64
    assert main(["compare", str(sets["a"]), str(sets["b"]), "--extractor", f"inception:{weights}@{wrong}"]) == 2
    error = capsys.readouterr().err
    assert f"not {wrong}" in error
    assert "download it again" in error
    assert main(["compare", str(sets["a"]), str(sets["b"]), "--extractor", f"inception:{weights}"]) == 2
    assert "not a safetensors file" in capsys.readouterr().err
