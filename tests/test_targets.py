"""The figures of bozkurt2018, dai2019 and manoj2018 as commands: pictures and a page, on eight-pixel digits at the smoke budget. A diagnosis of a wrapped model."""

from __future__ import annotations

from pathlib import Path

import pytest

from expost.cli import main
from expost.papers.base import targets

TARGETS = targets()

MODULE = """
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))

    def forward(self, x):
        mean, logvar = self.net(x).chunk(2, 1)
        return mean, logvar - 4


def pair():
    torch.manual_seed(1)
    return Encoder(), nn.Sequential(nn.Linear(4, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
"""


def test_every_figure_has_a_target() -> None:
    for paper, count in (("bozkurt2018", 13), ("dai2019", 10)):
        for number in range(1, count + 1):
            assert f"{paper}/figure{number}" in TARGETS
    assert "manoj2018/figures" in TARGETS


@pytest.mark.parametrize(
    ("target", "pictures"),
    [
        ("bozkurt2018/figure1", 2),
        ("bozkurt2018/figure2", 1),
        ("bozkurt2018/figure3", 1),
        ("dai2019/figure1", 4),
        ("dai2019/figure2", 1),
        ("dai2019/figure7", 2),
        ("dai2019/figure9", 2),
        ("dai2019/figure10", 1),
    ],
)
def test_figures_are_drawn(
    target: str, pictures: int, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path_factory.getbasetemp() / "figures-lab"  # shared, so that every model is trained once
    out = tmp_path_factory.mktemp("out")
    status = main(["reproduce", target, "--data", "digits", "--budget", "smoke", "--runs", str(runs), "--out", str(out)])
    said = capsys.readouterr()
    assert status in (0, 1)  # thirty steps need not reproduce a figure; what is not reproduced says so
    assert (status == 0) == ("was not reproduced" not in said.err)
    assert "Traceback" not in said.err
    assert len(list(out.glob("*.png"))) == pictures
    html = (out / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png") == pictures
    assert f"expost reproduce {target}" in html


def test_a_wrapped_model_is_diagnosed_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["wrap", "mine:pair", "--data", "digits", "--out", "wrapped"]) == 0
    assert main(["diagnose", "wrapped", "--density", "prior", "--n", "100", "--code", "mine:pair"]) == 0
    assert "1. failed reconstruction" in capsys.readouterr().out  # nothing was trained; codes vary, so nothing has collapsed
    assert (tmp_path / "wrapped" / "diagnosis" / "report.html").is_file()
    assert main(["density", "wrapped", "gmm:3", "--code", "mine:pair"]) == 0
    assert main(["diagnose", "wrapped", "--density", "gmm:3", "--n", "100", "--code", "mine:pair"]) == 0
    assert "sampled from gmm:3" in (tmp_path / "wrapped" / "diagnosis" / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["cite", "wrapped"]) == 0
    assert "bozkurt2018" in capsys.readouterr().out
