"""A device is honoured or refused, by one function, wherever one is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import expost
from expost import data
from expost.cli import main
from expost.cli.commands import COMMANDS
from expost.evaluate.features.base import Pixels, RandomNetwork, extract
from expost.runs.lab import Lab
from expost.runs.run import load_run
from expost.system.devices import choose_device
from expost.train.settings import Training
from toys import model, pictures, vectors

#: Name -> what is said of it on a machine without any accelerator.
ABSENT = {
    "cuda": "no CUDA device is available here: use --device cpu",
    "cuda:1": "no CUDA device",
    "mps": "no MPS device",
    "xpu": "no XPU device",
    "hpu": "no HPU device",
    "meta": "no META device",
    "opengl": "no OPENGL device",
    "nonsense": 'there is no device "nonsense"',
    "CUDA": "there is no device",
    "": "there is no device",
}
without_gpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="has an accelerator")

#: What each command needs beside --device; a device is looked at before anything else, so nothing of it need exist.
ARGUMENTS = {
    "train": ["ghosh2020/rae", "--data", "digits"],
    "wrap": ["code:make", "--data", "digits"],
    "density": ["run"],
    "sample": ["run", "--out", "s.npz"],
    "evaluate": ["run"],
    "compare": ["a.npz", "b.npz"],
    "diagnose": ["run"],
    "likelihood": ["run"],
    "reproduce": ["yu2020/table1"],
    "sweep": ["ghosh2020/rae", "--data", "digits"],
    "claims": ["C1", "--data", "digits"],
}


def test_the_cpu_and_the_default() -> None:
    assert {choose_device(name) for name in ("cpu", "cpu:0", torch.device("cpu"))} == {torch.device("cpu")}
    if not torch.cuda.is_available():
        assert choose_device(None) == torch.device("cpu")


@without_gpu
@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_there_is_refused_in_python(name: str) -> None:
    doors = [
        lambda: choose_device(name),
        lambda: expost.fit(model(), expost.ELBO(), vectors(), training=Training(steps=1), device=name),
        lambda: extract(RandomNetwork((1, 8, 8)), pictures(4), device=name),
        lambda: data.load("digits").to(name),
        lambda: Lab("digits", device=name),
    ]
    for door in doors:
        with pytest.raises(ValueError, match=ABSENT[name]):
            door()
    assert Pixels((1, 8, 8)).to("cpu")


@without_gpu
@pytest.mark.parametrize("command", [name for name, kind in COMMANDS.items() if "device" in {f.name for f in dataclasses.fields(kind)}])
def test_every_command_refuses_a_device_before_anything_is_done(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mps", "cuda:3"):
        assert main([command, *ARGUMENTS[command], "--device", name]) == 2
        assert f"no {name.partition(':')[0].upper()} device is available here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@without_gpu
def test_a_run_is_not_loaded_to_a_device_that_is_not_there(tmp_path: Path) -> None:
    assert (
        main(["train", "ghosh2020/ae", "--data", "digits", "--budget", "smoke", "--set", "training.steps=1", "--out", str(tmp_path / "a")])
        == 0
    )
    with pytest.raises(ValueError, match="no XPU device"):
        load_run(tmp_path / "a", device="xpu")


@pytest.mark.parametrize(
    ("name", "local", "expected"),
    [("cuda", None, "cuda"), ("cuda", "1", "cuda:1"), ("cuda:0", "1", "cuda:0"), ("cuda:2", None, ""), ("cuda", "2", "")],
)
def test_graphics_cards_are_counted(name: str, local: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process of torchrun has its own card, unless it names one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if local is not None:
        monkeypatch.setenv("LOCAL_RANK", local)
    if expected:
        assert choose_device(name) == torch.device(expected)
    else:
        with pytest.raises(ValueError, match="cuda:2 is not available here: there are 2 CUDA devices, cuda:0 to cuda:1"):
            choose_device(name)
