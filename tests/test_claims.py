"""The catalogue of claims is complete, and those without training hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from expost.papers.base import claims_of
from expost.papers.check import check_claims
from expost.runs.lab import Lab

CLAIMS = claims_of(None)


def test_every_claim_of_the_papers_is_listed_once() -> None:
    counts = {"A": 11, "B": 14, "C": 18, "D": 9, "E": 13}
    assert [c.id for c in CLAIMS] == [f"{letter}{i}" for letter, n in counts.items() for i in range(1, n + 1)]
    assert all(c.sentence and c.how and c.level in "MSW" for c in CLAIMS)


def test_selection() -> None:
    assert len(claims_of("002")) == len(claims_of("ghosh2020")) == 18
    assert [c.id for c in claims_of("c13")] == ["C13"]
    with pytest.raises(ValueError, match=r"give a paper \(bozkurt2018, dai2019"):
        claims_of("005")


@pytest.mark.parametrize("name", ["C13", "C18", "E1", "E11", "E12", "E13"])  # E7 to E9 are demonstrations, which test_tutorial holds
def test_mathematical_claims_hold(name: str, tmp_path: Path) -> None:
    (claim,) = claims_of(name)
    assert claim.measure is not None
    verdict = claim.measure(Lab(root=tmp_path))
    assert verdict.holds, verdict.measured


def test_a_claim_that_needs_runs_trains_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_claims("B1", "digits", "smoke", 0, tmp_path, "cpu")
    out = capsys.readouterr()
    assert "test MSE per pixel" in out.out
    assert "training dai2019/vae-learned" in out.err
    check_claims("B4", "digits", "smoke", 0, tmp_path, "cpu")
    again = capsys.readouterr().err
    assert "training dai2019/vae-learned" not in again
    assert "scoring dai2019/vae-learned" not in again
    assert "training dai2019/vae-cross-entropy" in again


def test_unbuilt_claims_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_claims("C14", "digits", "smoke", 0, tmp_path, "cpu") == []
    assert "not built yet" in capsys.readouterr().out
