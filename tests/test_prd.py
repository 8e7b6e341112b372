"""Precision and recall curves against the authors' numbers (golden/prd.json), toy cases, and clusterings against scikit-learn's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from expost.evaluate.metrics.prd import f_beta, prd, prd_from_histograms
from expost.statistics.kmeans import lloyd

GOLDEN = json.loads((Path(__file__).parent / "golden" / "prd.json").read_text())


def golden_features(n: int = 300, d: int = 6) -> tuple[Tensor, Tensor]:
    """As ``features`` in the script that the golden file carries."""
    state = np.random.RandomState(7)
    real = state.randn(n, d) + 6 * np.eye(d)[state.randint(0, 6, n)]
    generated = 1.3 * state.randn(n, d) + 6 * np.eye(d)[state.randint(0, 3, n)]
    return torch.from_numpy(generated), torch.from_numpy(real)


def modes(n: int, which: range, seed: int, d: int = 16) -> Tensor:
    """Rows around a few of many well-separated centres."""
    draws = torch.Generator().manual_seed(seed)
    centres = 20 * torch.randn(20, d, generator=torch.Generator().manual_seed(99))
    return centres[which.start + torch.arange(n) % len(which)] + torch.randn(n, d, generator=draws)


@pytest.mark.parametrize("case", GOLDEN["histograms"], ids=lambda case: case["name"])
def test_histograms_equal_the_authors(case: dict[str, Any]) -> None:
    precision, recall = prd_from_histograms(*(torch.tensor(case[side], dtype=torch.float64) for side in ("generated", "real")))
    np.testing.assert_allclose(precision[::50].numpy(), case["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(recall[::50].numpy(), case["recall"], rtol=0, atol=1e-12)
    assert float(f_beta(precision, recall, 8).max()) == pytest.approx(case["f8"], abs=1e-12)
    assert float(f_beta(precision, recall, 1 / 8).max()) == pytest.approx(case["f1_8"], abs=1e-12)


@pytest.mark.parametrize("case", GOLDEN["features"], ids=lambda case: f"seed {case['seed']}")
def test_features_equal_the_authors_with_their_clustering(case: dict[str, Any]) -> None:
    generated, real = golden_features()
    options = {"clusters": case["clusters"], "runs": case["runs"], "seed": case["seed"]}
    found = prd(generated, real, engine="sklearn", **options)
    np.testing.assert_allclose(found.precision[::50].numpy(), case["precision"], atol=1e-6)
    np.testing.assert_allclose(found.recall[::50].numpy(), case["recall"], atol=1e-6)
    assert found.f8.value == pytest.approx(case["f8"], abs=1e-6)
    assert found.f1_8.value == pytest.approx(case["f1_8"], abs=1e-6)
    ours = prd(generated, real, **options)
    assert ours.f8.value == pytest.approx(case["f8"], abs=0.05)
    assert ours.f1_8.value == pytest.approx(case["f1_8"], abs=0.05)
    swapped = prd(real, generated, **options)
    assert swapped.f8.value == pytest.approx(ours.f1_8.value, abs=0.1)
    assert swapped.f8.value - ours.f8.value > 0.3  # three of six modes: precise, half recalled. A swap cannot pass


def test_engines_agree_on_separated_clusters() -> None:
    generated, real = modes(400, range(5), 1), modes(400, range(20), 2)
    ours, theirs = prd(generated, real), prd(generated, real, engine="sklearn")
    assert ours.f8.value == pytest.approx(theirs.f8.value, abs=0.02)
    assert ours.f1_8.value == pytest.approx(theirs.f1_8.value, abs=0.02)
    # five of twenty modes, and the cells are the modes: α(λ) = min(λ/4, 1), β = α/λ, the corner is α = 1, β = 1/4
    assert ours.f8.value == pytest.approx(float(f_beta(torch.tensor(1.0), torch.tensor(0.25), 8)), abs=0.02)
    assert ours.f1_8.value > 0.9


def test_the_same_set_and_a_disjoint_one() -> None:
    x = modes(200, range(10), 3)
    same = prd(x, x.clone(), runs=3)
    assert min(same.f8.value, same.f1_8.value) > 1 - 1e-9
    apart = prd(x, modes(200, range(10, 20), 4), runs=3, clusters=20)
    assert max(apart.f8.value, apart.f1_8.value) < 1e-6


def test_curves_are_averages_and_spread_is_over_runs() -> None:
    draws = torch.Generator().manual_seed(5)
    x, y = torch.randn(300, 8, generator=draws), torch.randn(300, 8, generator=draws) * 1.3
    ten = prd(x, y, runs=10)
    assert ten.precision.shape == ten.recall.shape == (1001,)
    assert bool((ten.precision.diff() >= -1e-12).all())
    assert bool((ten.recall.diff() <= 1e-12).all())
    assert ten.f8.value == float(f_beta(ten.precision, ten.recall, 8).max())
    assert ten.f8.value <= ten.f8.details["mean"] + 1e-12  # the best of the average is no better than the average of the best
    assert ten.f8.error == pytest.approx(ten.f8.details["std"] / 10**0.5)
    one = prd(x, y, runs=1)
    assert one.f8.error is None
    assert one.f8.value == one.f8.details["mean"]
    assert any("below 1000" in note for note in ten.notes)
    assert set(ten.results()) == {"f8", "f1_8"}


def test_shuffling_changes_nothing_and_seeds_do() -> None:
    draws = torch.Generator().manual_seed(6)
    x, y = torch.randn(400, 8, generator=draws), torch.randn(400, 8, generator=draws) * 1.2
    order = torch.randperm(400, generator=draws)
    one, other = prd(x, y, runs=3), prd(x[order], y[order.flip(0)], runs=3)
    assert torch.equal(one.precision, other.precision)
    assert torch.equal(one.recall, other.recall)
    assert not torch.equal(prd(x, y, runs=3, seed=1).precision, one.precision)
    torch.set_num_threads(2)
    try:
        assert prd(x, y, runs=3).f8.value == pytest.approx(one.f8.value, abs=0.02)
    finally:
        torch.set_num_threads(1)


def test_unequal_numbers_are_refused_or_drawn() -> None:
    x, y = modes(200, range(5), 7), modes(120, range(5), 8)
    with pytest.raises(ValueError, match=r"200 generated and 120 real rows .* balance='subsample'"):
        prd(x, y)
    found = prd(x, y, runs=2, balance="subsample")
    assert found.n == found.f8.n == 120
    assert any("were drawn from" in note for note in found.notes)


def test_bad_arguments_are_refused_in_one_sentence() -> None:
    x = modes(30, range(3), 9)
    half = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="cannot be made"):
        prd(x, x, clusters=100)
    with pytest.raises(ValueError, match="between 3 and"):
        prd(x, x, angles=2)
    with pytest.raises(ValueError, match="sum to 1, not to 2"):
        prd_from_histograms(2 * half, half)
    with pytest.raises(ValueError, match="share one shape"):
        prd_from_histograms(half, torch.ones(1))
    with pytest.raises(ValueError, match=r"recall must lie in \[0, 1\]"):
        f_beta(half, 3 * half, 1)
    with pytest.raises(ValueError, match="beta must be positive"):
        f_beta(half, half, 0)


def inertia(x: Tensor, labels: Tensor, clusters: int) -> float:
    """Within-cluster sum of squares about the clusters' means, in float64."""
    x = x.double()
    return sum(float((x[labels == k] - x[labels == k].mean(0)).square().sum()) for k in range(clusters) if bool((labels == k).any()))


@pytest.mark.parametrize("n", [600, 9000])  # one level of subsamples, and three
def test_clusterings_are_no_worse_than_mini_batch(n: int) -> None:
    draws = torch.Generator().manual_seed(10)
    x = (torch.randn(n, 12, generator=draws) @ torch.randn(12, 24, generator=draws) + torch.randn(n, 24, generator=draws)).relu()
    ours = lloyd(x, 20, restarts=10)
    theirs = [inertia(x, torch.from_numpy(MiniBatchKMeans(20, n_init=10, random_state=s).fit(x.numpy()).labels_), 20) for s in range(5)]
    assert float(ours.inertias.mean()) <= 1.002 * float(np.mean(theirs))
    assert float(ours.inertias.max()) <= 1.01 * max(theirs)
    for labels, value in zip(ours.labels[:3], ours.inertias, strict=False):
        assert float(value) == pytest.approx(inertia(x, labels, 20), rel=1e-6)


def test_lloyd_ends_where_nothing_changes() -> None:
    """At tolerance 0 every row lies with its nearest mean."""
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(11)) + 100
    for labels in lloyd(x, 7, restarts=4, tolerance=0).labels:
        means = torch.stack([x[labels == k].double().mean(0) for k in range(7)])
        assert torch.equal(torch.cdist(x.double(), means).argmin(1), labels)


def test_restarts_do_not_depend_on_each_other_or_on_the_memory() -> None:
    x = torch.randn(3000, 5, generator=torch.Generator().manual_seed(12))
    many, few = lloyd(x, 6, restarts=5, seed=3), lloyd(x, 6, restarts=2, seed=3, memory=2**16)
    for r in range(2):  # chunks change sums by round-off, which may move a row on a border
        assert float((many.labels[r] != few.labels[r]).double().mean()) < 0.01
        assert float(many.inertias[r]) == pytest.approx(float(few.inertias[r]), rel=1e-4)
    assert torch.equal(many.labels, lloyd(x, 6, restarts=5, seed=3).labels)


def test_empty_clusters_are_filled_or_stay_empty_where_they_must() -> None:
    few = torch.tensor([[0.0], [1.0], [5.0]]).repeat(20, 1)  # three distinct rows
    found = lloyd(few, 5, restarts=3)
    assert found.inertias.tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    assert all(len(labels.unique()) == 3 for labels in found.labels)
    assert lloyd(torch.ones(10, 2), 3).inertias.tolist() == [0.0]
    with pytest.raises(ValueError, match="cannot be made of 3 rows"):
        lloyd(torch.ones(3, 2), 4)
    with pytest.raises(ValueError, match="at least 1 restart"):
        lloyd(torch.ones(3, 2), 2, restarts=0)
