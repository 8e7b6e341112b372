"""Statistics of memorisation on sets whose answer is known, and against naive loops and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from expost.evaluate.metrics.memorisation import (
    _mann_whitney,
    authenticity,
    cells_of,
    copy_distance,
    data_copying,
    memorisation_panel,
    nearest_neighbour_ratio,
)
from expost.evaluate.metrics.neighbours import RealNeighbours
from expost.statistics.neighbours import Neighbours, nearest

D = 8


def normal(n: int, seed: int, d: int = D) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


TRAIN, TEST, FRESH = normal(1200, 0), normal(500, 1), normal(600, 2)
COPIES = TRAIN[:600]
HALF = torch.cat([TRAIN[:300], FRESH[:300]])


def distances(a: Tensor, b: Tensor) -> np.ndarray:
    return np.stack([np.sqrt(((b.double().numpy() - row) ** 2).sum(1)) for row in a.double().numpy()])


def test_authenticity_of_known_sets() -> None:
    fresh = float(authenticity(FRESH, TRAIN))
    assert float(authenticity(COPIES, TRAIN)) == 0.0
    assert 50 < fresh < 70
    assert float(authenticity(HALF, TRAIN)) == pytest.approx(fresh / 2, abs=4)
    assert float(authenticity(10 * FRESH, TRAIN)) > 95


@pytest.mark.parametrize("generated", [FRESH, HALF, TEST], ids=["fresh", "half", "test"])
def test_authenticity_agrees_with_a_loop(generated: Tensor) -> None:
    among = distances(TRAIN, TRAIN)
    np.fill_diagonal(among, np.inf)
    count = 0
    for row in distances(generated, TRAIN):
        star = int(row.argmin())
        count += row[star] > among[star].min()
    result = authenticity(generated, TRAIN)
    assert result.value == pytest.approx(100 * count / len(generated), abs=1e-12)
    p = result.value / 100
    assert result.error == pytest.approx(100 * math.sqrt(p * (1 - p) / len(generated)))
    assert (result.n, result.unit) == (len(generated), "%")


def test_authenticity_looks_the_distance_up_under_the_training_point() -> None:
    """Training pairs of very different widths, in an order unlike that of the generated points."""
    train = torch.tensor([[0.0], [1.0], [100.0], [150.0]])
    generated = torch.tensor([[120.0], [1.5], [155.0], [-2.0], [3.0]])  # 20 < 50, 0.5 < 1, 5 < 50, 2 > 1, 2 > 1
    assert float(authenticity(generated, train)) == 40.0


def test_repeated_training_points_make_no_copy_authentic() -> None:
    train = torch.cat([TRAIN[:100], TRAIN[:100]])
    assert float(authenticity(TRAIN[:50], train)) == 0.0


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("m", "n"), [(30, 40), (200, 25), (1, 5)])
def test_mann_whitney_agrees_with_scipy(m: int, n: int, ties: bool) -> None:
    a, b = torch.rand(m, dtype=torch.float64) ** 1.1, torch.rand(n, dtype=torch.float64)
    if ties:
        a, b = (a * 6).round(), (b * 6).round()
    p = scipy.stats.mannwhitneyu(a.numpy(), b.numpy(), alternative="less", method="asymptotic", use_continuity=True).pvalue
    assert _mann_whitney(a, b) == pytest.approx(scipy.stats.norm.ppf(p), rel=1e-9, abs=1e-12)


def test_mann_whitney_of_equal_values_is_zero() -> None:
    assert _mann_whitney(torch.zeros(10, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)) == 0.0


def test_data_copying_of_known_sets() -> None:
    assert abs(float(data_copying(FRESH, TEST, TRAIN))) < 3
    assert float(data_copying(COPIES, TEST, TRAIN)) < -10
    assert float(data_copying(HALF, TEST, TRAIN)) < -4
    assert float(data_copying(1.5 * FRESH, TEST, TRAIN)) > 8
    with_noise = COPIES + 0.02 * FRESH
    assert float(data_copying(with_noise, TEST, TRAIN)) < -10


def test_data_copying_is_standard_normal_under_equality() -> None:
    """Standardised by its stated error over 60 draws of the generated set against as many of the test set."""
    draws = []
    for seed in range(60):
        result = data_copying(normal(150, 100 + seed), normal(150, 500 + seed), TRAIN, cells=2)
        draws.append(result.value / (result.error or math.nan))
    z = torch.tensor(draws)
    assert abs(float(z.mean())) < 0.45
    assert 0.75 < float(z.std()) < 1.3


def naive_data_copying(generated: Tensor, test: Tensor, train: Tensor, centres: Tensor) -> float:
    """The definition, with SciPy's test in every cell."""
    (ours, theirs), weight, total = (distances(x, train).min(1) for x in (generated, test)), 0.0, 0.0
    cell_ours, cell_theirs = (distances(x, centres).argmin(1) for x in (generated, test))
    for cell in range(len(centres)):
        a, b = ours[cell_ours == cell], theirs[cell_theirs == cell]
        if len(a) <= 20 or len(b) <= 20:
            continue
        p = scipy.stats.mannwhitneyu(a, b, alternative="less", method="asymptotic").pvalue
        total += len(b) / len(test) * scipy.stats.norm.ppf(p)
        weight += len(b) / len(test)
    return total / weight


@pytest.mark.parametrize("cells", [1, 3, 5])
def test_data_copying_agrees_with_a_loop(cells: int) -> None:
    generated = torch.cat([FRESH[:500], TRAIN[:60]])
    centres = cells_of(TRAIN, cells, seed=3)
    result = data_copying(generated, TEST, TRAIN, cells=cells, seed=3)
    assert result.value == pytest.approx(naive_data_copying(generated, TEST, TRAIN, centres), rel=1e-6)
    assert result.value == data_copying(generated, TEST, TRAIN, centres=centres).value
    shares = [result.details[f"P {cell}"] for cell in range(cells)]
    assert sum(shares) == pytest.approx(1)
    assert result.error == pytest.approx(math.sqrt(sum(p * p for p in shares)))


def test_cells_with_few_points_are_left_out_and_named() -> None:
    far = torch.full((1, D), 50.0)
    train, test = torch.cat([TRAIN, TRAIN[:300] + far]), torch.cat([TEST, TEST[:100] + far])
    generated = torch.cat([FRESH, FRESH[:20] + far])  # 20 are not enough, 21 are
    left_out = data_copying(generated, test, train, cells=2)
    assert sum("left out" in note for note in left_out.notes) == 1
    assert "20 generated and 100 test points" in " ".join(left_out.notes)
    assert sum(name.startswith("Z") for name in left_out.details) == 1
    both = data_copying(torch.cat([generated, FRESH[:1] + far]), test, train, cells=2)
    assert sum(name.startswith("Z") for name in both.details) == 2


def test_data_copying_on_principal_axes_is_data_copying_of_projected_data() -> None:
    scales = torch.cat([torch.full((3,), 5.0), torch.full((5,), 0.5)])
    generated, test, train = (x * scales for x in (FRESH, TEST, TRAIN))
    axes = torch.from_numpy(np.linalg.svd((train - train.mean(0)).double().numpy(), full_matrices=False)[2][:3]).T
    projected = [(x.double() - train.double().mean(0)) @ axes for x in (generated, test, train)]
    centres = cells_of(projected[2], 1)
    expected = naive_data_copying(*projected, centres)
    assert data_copying(generated, test, train, cells=1, pca=3).value == pytest.approx(expected, rel=1e-9)


def test_cells_are_those_of_separated_clusters() -> None:
    centres = 100 * normal(3, 5)
    train = torch.cat([centres + 0.1 * normal(3, seed) for seed in range(40)])
    found = cells_of(train, 3, seed=1)
    nearest_found = torch.cdist(centres.double(), found).min(1)
    assert float(nearest_found.values.max()) < 0.2
    assert sorted(nearest_found.indices.tolist()) == [0, 1, 2]
    assert torch.equal(found, cells_of(train, 3, seed=1))


def test_nearest_neighbour_ratio_agrees_with_a_loop() -> None:
    generated = torch.cat([FRESH[:300], COPIES[:100], COPIES[100:200] + 0.01 * FRESH[:100]])
    two = np.sort(distances(generated, TRAIN), axis=1)[:, :2]
    ratio = two[:, 0] / two[:, 1]
    result = nearest_neighbour_ratio(generated, TRAIN)
    assert result.value == pytest.approx(100 * float((ratio < 1 / 3).mean()), abs=1e-12)
    assert result.value == pytest.approx(40, abs=0.5)
    assert result.details["mean ratio"] == pytest.approx(float(ratio.mean()), rel=1e-12)
    assert result.details["median ratio"] == pytest.approx(float(np.median(ratio)), rel=1e-12)
    assert result.details["exact copies %"] == 20.0


def test_copies_of_repeated_training_points_have_ratio_zero() -> None:
    assert float(nearest_neighbour_ratio(TRAIN[:50], torch.cat([TRAIN, TRAIN]))) == 100.0


def test_copy_distance_agrees_with_a_loop() -> None:
    result = copy_distance(HALF[:599], TEST, TRAIN)
    ours, theirs = (np.median(distances(x, TRAIN).min(1)) for x in (HALF[:599], TEST))
    assert result.value == pytest.approx(ours / theirs, rel=1e-12)
    assert float(copy_distance(COPIES, TEST, TRAIN)) == 0.0
    assert float(copy_distance(FRESH, TEST, TRAIN)) == pytest.approx(1, abs=0.1)
    assert float(copy_distance(2 * FRESH, TEST, TRAIN)) > 1.3


def test_the_error_of_the_copy_distance_is_its_spread() -> None:
    results = [copy_distance(normal(200, 2 * seed + 50), normal(200, 2 * seed + 51), TRAIN) for seed in range(40)]
    spread = float(torch.tensor([result.value for result in results]).std())
    assert sum(result.error or math.nan for result in results) / 40 == pytest.approx(spread, rel=0.35)


def test_known_neighbours_change_nothing_and_are_used() -> None:
    of_fresh, kept = nearest(FRESH, TRAIN, 2), RealNeighbours.of(TEST, TRAIN)
    assert authenticity(FRESH, TRAIN, nearest_train=of_fresh, train_nearest=kept.train_nearest) == authenticity(FRESH, TRAIN)
    assert nearest_neighbour_ratio(FRESH, TRAIN, nearest_train=of_fresh) == nearest_neighbour_ratio(FRESH, TRAIN)
    known = {"nearest_train": of_fresh, "test_nearest": kept.test_to_train}
    assert copy_distance(FRESH, TEST, TRAIN, **known) == copy_distance(FRESH, TEST, TRAIN)
    assert data_copying(FRESH, TEST, TRAIN, **known) == data_copying(FRESH, TEST, TRAIN)
    nothing = Neighbours(torch.zeros_like(of_fresh.distances), of_fresh.indices)
    assert float(authenticity(FRESH, TRAIN, nearest_train=nothing)) == 0.0
    assert float(copy_distance(FRESH, TEST, TRAIN, nearest_train=nothing)) == 0.0


def test_memory_and_order_change_nothing() -> None:
    p, q, r = (torch.randperm(len(x), generator=torch.Generator().manual_seed(9)) for x in (FRESH, TEST, TRAIN))
    centres = cells_of(TRAIN)
    measures = (
        authenticity,
        nearest_neighbour_ratio,
        lambda generated, train, **options: copy_distance(generated, TEST[q] if "memory" not in options else TEST, train, **options),
        lambda generated, train, **options: data_copying(
            generated, TEST[q] if "memory" not in options else TEST, train, centres=centres, **options
        ),
    )
    for measure in measures:
        value = measure(FRESH, TRAIN, memory=1 << 28).value
        assert measure(FRESH, TRAIN, memory=1 << 18).value == value
        assert measure(FRESH[p], TRAIN[r]).value == pytest.approx(value, rel=1e-12)


def test_panel_puts_the_generated_set_between_known_answers() -> None:
    kept = RealNeighbours.of(TEST, TRAIN)
    jittered = COPIES + 0.02 * FRESH
    panel = memorisation_panel(HALF, TEST, TRAIN, controls={"jittered": jittered}, known=kept)
    assert list(panel.rows) == ["generated", "jittered", "test", "training copies"]
    assert panel.results() == memorisation_panel(HALF, TEST, TRAIN).results()
    for statistic in ("authenticity", "C_T", "copy distance"):
        copies, generated, test = (panel.rows[name][statistic].value for name in ("training copies", "generated", "test"))
        assert copies < generated < test
    assert panel.rows["training copies"]["authenticity"].value == 0
    assert panel.rows["training copies"]["NN ratio"].value == 100
    assert panel.rows["training copies"]["copy distance"].value == 0
    assert abs(panel.rows["test"]["C_T"].value) < 3
    assert panel.rows["test"]["authenticity"] == authenticity(TEST, TRAIN)
    assert panel.rows["jittered"]["C_T"] == data_copying(jittered, TEST, TRAIN)
    assert panel.table().cell("training copies", "NN ratio") == 100
    assert "training copies" in str(panel)


def test_the_copies_of_the_panel_are_what_a_search_would_find() -> None:
    panel = memorisation_panel(FRESH[:200], TEST, TRAIN, seed=4)
    from expost.seeds import permutation

    copies = TRAIN[permutation(len(TRAIN), "copies", 4)[:200]]
    expected = {
        "authenticity": authenticity(copies, TRAIN),
        "C_T": data_copying(copies, TEST, TRAIN, seed=4),
        "NN ratio": nearest_neighbour_ratio(copies, TRAIN),
        "copy distance": copy_distance(copies, TEST, TRAIN),
    }
    assert panel.rows["training copies"] == expected


def test_panel_on_principal_axes() -> None:
    panel = memorisation_panel(FRESH, TEST, TRAIN, pca=4)
    assert panel.rows["generated"]["C_T"] == data_copying(FRESH, TEST, TRAIN, pca=4)
    assert panel.rows["training copies"]["C_T"].value < -10


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: authenticity(FRESH, TRAIN[:, :3]), "8 and of 3 dimensions"),
        (lambda: authenticity(FRESH, TRAIN[:1]), "k = 1 .* among 0 points"),
        (lambda: authenticity(FRESH, TRAIN, train_nearest=torch.zeros(3)), r"one distance per training point \(1200\), not shape \(3,\)"),
        (lambda: authenticity(FRESH, TRAIN, nearest_train=nearest(TEST, TRAIN)), r"500 queries, k = 1\) are not those of 600 points"),
        (lambda: authenticity(FRESH, TRAIN[:5], nearest_train=nearest(FRESH, TRAIN)), "compute them from these very features"),
        (lambda: nearest_neighbour_ratio(FRESH, TRAIN, nearest_train=nearest(FRESH, TRAIN)), "with k >= 2"),
        (lambda: nearest_neighbour_ratio(FRESH, TRAIN, threshold=0), r"must lie in \(0, 1\], not 0"),
        (lambda: copy_distance(FRESH, TRAIN[:50], TRAIN), "copies of training points, so there is no distance to compare with"),
        (lambda: data_copying(FRESH[:10], TEST, TRAIN), "pass more points or fewer cells than 3"),
        (lambda: data_copying(FRESH, TEST, TRAIN, cells=0), "1200 training points cannot be split into 0 cells"),
        (lambda: data_copying(FRESH, TEST, TRAIN, pca=9), "have no 9 principal axes: choose a smaller pca, or None"),
        (lambda: data_copying(FRESH, TEST, TRAIN, pca=3, centres=TRAIN[:2].double()), "do not hold after pca"),
        (lambda: memorisation_panel(FRESH, TEST, TRAIN, controls={"test": TEST}), "cannot be called 'test'"),
        (lambda: memorisation_panel(FRESH, TEST, TRAIN, known=RealNeighbours.of(FRESH, TRAIN)), "600 queries"),
        (lambda: authenticity(FRESH * torch.nan, TRAIN), "queries hold NaN or infinity"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]
