"""Where classes lie among codes: closed forms, invariances, errors by repetition; the reach of codes into the prior."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from expost.diagnose.classes.classify import prior_codes
from expost.diagnose.classes.distances import class_codes, prior_reach


def clusters(n: int = 600, k: int = 4, d: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(k, d, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(k, (n,), generator=g)
    return centres[labels] + 0.5 * torch.randn(n, d, generator=g), labels


def test_quantities_against_loops() -> None:
    z, labels = clusters()
    found = class_codes(z, labels)
    z = z.double()
    centroids = torch.stack([z[labels == i].mean(0) for i in range(4)])
    pairs = [float((centroids[i] - centroids[j]).norm()) for i in range(4) for j in range(i)]
    assert found.raw_distance.value == pytest.approx(sum(pairs) / 6)
    assert found.rms_norm.value == pytest.approx(math.sqrt(float(z.square().sum(1).mean())))
    assert found.relative_distance.value == pytest.approx(found.raw_distance.value / found.rms_norm.value)
    assert found.total_variance.value == pytest.approx(float((z - z.mean(0)).square().sum(1).mean()))
    assert found.within.value + found.between.value == pytest.approx(found.total_variance.value)
    assert torch.allclose(found.centroids, centroids)
    for i in range(4):
        assert float(found.spreads[i]) == pytest.approx(math.sqrt(float((z[labels == i] - centroids[i]).square().sum(1).mean())))
    assert "variance within" in str(found)


def test_rescaling_changes_all_but_the_relative_distance() -> None:
    z, labels = clusters()
    one, half = class_codes(z, labels), class_codes(0.5 * z, labels)
    assert half.relative_distance.value == pytest.approx(one.relative_distance.value)
    assert half.raw_distance.value == pytest.approx(0.5 * one.raw_distance.value)
    assert half.total_variance.value == pytest.approx(0.25 * one.total_variance.value)


def test_errors_are_those_of_repetition() -> None:
    results = [class_codes(*clusters(seed=seed)).results for seed in range(150)]
    for i in range(len(results[0])):
        spread = float(torch.tensor([r[i].value for r in results]).std())
        claimed = math.sqrt(sum((r[i].error or 0) ** 2 for r in results) / len(results))
        assert 0.8 < claimed / spread < 1.25, results[0][i].name


def test_empty_classes_and_rare_ones() -> None:
    z, labels = clusters(60)
    found = class_codes(z, torch.where(labels == 1, 5, labels))
    assert len(found.centroids) == 6
    assert bool(found.centroids[1].isnan().all())
    assert math.isfinite(found.raw_distance.value)
    assert any("rough" in note for note in found.notes)


def test_refusals() -> None:
    z, labels = clusters(20)
    with pytest.raises(ValueError, match="at least two classes"):
        class_codes(z, torch.zeros(20, dtype=torch.long))
    with pytest.raises(ValueError, match="one integer label each"):
        class_codes(z, labels[:5])
    with pytest.raises(ValueError, match="NaN"):
        class_codes(z / 0, labels)
    with pytest.raises(ValueError, match="at least 2 rows"):
        prior_reach(z[:1])


def test_reach_is_95_percent_for_the_prior_and_less_for_narrower_codes() -> None:
    matched = prior_reach(prior_codes(3000, 4, seed=11), n=2000)
    assert abs(matched.value - 0.95) < 0.02
    narrow = prior_reach(0.3 * prior_codes(3000, 4, seed=11), n=2000)
    assert narrow.value < 0.5
    assert prior_reach(3 * prior_codes(3000, 4, seed=11), n=2000).value < matched.value
    assert prior_reach(prior_codes(3000, 4, seed=11), n=2000, memory=1_000_000) == matched
