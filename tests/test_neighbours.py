"""Exact nearest neighbours and precision, recall, density, coverage: naive loops, known answers, and what must not change a result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expost.evaluate.metrics import neighbours
from expost.evaluate.metrics.neighbours import RealNeighbours, neighbour_panel
from expost.statistics import neighbours as module
from expost.statistics.neighbours import Neighbours, nearest, pair_distances
from expost.system.files import load_tensors, save_tensors

TINY = 1 << 19
NAMES = ("precision", "recall", "density", "coverage")


def normal(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def grid(n: int, d: int, seed: int, high: int = 3) -> Tensor:
    """Small integers: many copies and many equal distances, all exact in floating point."""
    return torch.randint(high, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def all_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) by direct differences, row by row."""
    return torch.stack([(b.double() - row.double()).square().sum(1).sqrt() for row in a])


def naive(a: Tensor, b: Tensor, k: int, same: bool) -> Neighbours:
    distances = all_distances(a, b)
    if same:
        distances.fill_diagonal_(torch.inf)
    found = distances.sort(dim=1, stable=True)
    return Neighbours(found.values[:, :k], found.indices[:, :k])


def naive_panel(generated: Tensor, real: Tensor, k: int, k_coverage: int) -> dict[str, float]:
    """The definitions, pair by pair."""
    between = all_distances(generated, real)
    small, large, own = (naive(x, x, k, same=True).distances[:, -1] for x, k in ((real, k), (real, k_coverage), (generated, k)))
    inside = ((between < large) | (between == 0)).double()
    return {
        "precision": float((between <= small).any(1).double().mean()),
        "recall": float((between <= own[:, None]).any(0).double().mean()),
        "density": float(inside.sum(1).mean()) / k_coverage,
        "coverage": float(inside.any(0).double().mean()),
    }


def scores(generated: Tensor, real: Tensor, **options: object) -> dict[str, float]:
    panel = neighbour_panel(generated, real, **options)  # type: ignore[arg-type]
    return {name: getattr(panel, name) for name in NAMES}


def assert_same(found: Neighbours, expected: Neighbours, rel: float = 1e-12) -> None:
    torch.testing.assert_close(found.distances, expected.distances, rtol=rel, atol=0)
    assert torch.equal(found.indices, expected.indices)


CASES = {
    "plane": lambda seed: normal(150, 2, seed),
    "line": lambda seed: normal(90, 1, seed, torch.float64),
    "features": lambda seed: normal(200, 300, seed).relu(),
    "far from the origin": lambda seed: normal(120, 20, seed, torch.float64) + 1e4,
    "half precision": lambda seed: normal(80, 30, seed, torch.bfloat16),
    "huge": lambda seed: normal(80, 5, seed, torch.float64) * 1e30,
    "minute": lambda seed: normal(80, 5, seed) * 1e-30,
    "an outlier": lambda seed: torch.cat([normal(100, 8, seed), torch.full((1, 8), 1e6)]),
    "tight clusters": lambda seed: 100 * normal(5, 40, 99, torch.float64).repeat(40, 1) + 1e-5 * normal(200, 40, seed, torch.float64),
    "clusters tighter than float32 sees": lambda seed: (
        normal(4, 10, 99, torch.float64).repeat(20, 1) + 1e-11 * normal(80, 10, seed, torch.float64)
    ),
    "grid": lambda seed: grid(200, 4, seed),
    "binary images": lambda seed: grid(150, 60, seed, 2),
    "one point": lambda seed: torch.full((60, 7), 0.3),
    "few of many copies": lambda seed: normal(3, 6, 99).repeat(40, 1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("same", [True, False])
def test_agrees_with_a_loop(name: str, same: bool) -> None:
    points = CASES[name](0)
    queries = points if same else CASES[name](1)[:-7]
    for k in (1, 4):
        assert_same(nearest(queries, points, k, same=same), naive(queries, points, k, same))


@pytest.mark.parametrize("k", [1, 5, 19])
def test_as_many_neighbours_as_there_are(k: int) -> None:
    x = normal(20, 3, 0)
    assert_same(nearest(x, x, k, same=True), naive(x, x, k, True))
    assert_same(nearest(x, x, k + 1), naive(x, x, k + 1, False))


def test_many_dimensions_are_summed_in_parts() -> None:
    d = module.SPAN + 700
    x, y = normal(40, d, 0), normal(50, d, 1)
    assert_same(nearest(x, y, 3), naive(x, y, 3, False))


def test_a_point_is_not_its_own_neighbour_but_its_copy_is() -> None:
    x = normal(50, 12, 0)
    twice = torch.cat([x, x])
    found = nearest(twice, twice, 2, same=True)
    assert torch.equal(found.indices[:, 0], torch.arange(100).roll(50))
    assert (found.distances[:, 0] == 0).all()
    assert (found.distances[:, 1] > 0).all()


@pytest.mark.parametrize("name", ["features", "binary images", "one point", "tight clusters"])
def test_memory_changes_no_bit(name: str) -> None:
    x, y = CASES[name](0).repeat(3, 1), CASES[name](1)
    for same in (True, False):
        a, b = (nearest(x if same else y, x, 3, same=same, memory=memory) for memory in (TINY, 1 << 28))
        assert torch.equal(a.distances, b.distances)
        assert torch.equal(a.indices, b.indices)
    assert scores(y, x, memory=TINY) == scores(y, x)


def test_threads_change_no_bit() -> None:
    x, y = normal(700, 200, 0), normal(600, 200, 1)
    one = (
        nearest(x, y, 3),
        scores(x, y),
        pair_distances(x[:1].repeat(1, 300), torch.zeros(1).long(), y[:1].repeat(1, 300), torch.zeros(1).long()),
    )
    torch.set_num_threads(2)
    try:
        two = (
            nearest(x, y, 3),
            scores(x, y),
            pair_distances(x[:1].repeat(1, 300), torch.zeros(1).long(), y[:1].repeat(1, 300), torch.zeros(1).long()),
        )
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0].distances, two[0].distances)
    assert torch.equal(one[0].indices, two[0].indices)
    assert one[1] == two[1]
    assert torch.equal(one[2], two[2])


@pytest.mark.parametrize("make", [lambda n, s: normal(n, 30, s), lambda n, s: grid(n, 5, s)])
def test_order_of_rows_changes_no_distance_and_no_score(make: object) -> None:
    x, y = make(400, 0), make(300, 1)  # type: ignore[operator]
    p, q = (torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (400, 300))
    assert torch.equal(nearest(x, y, 3).distances[p], nearest(x[p], y[q], 3).distances)
    assert scores(x, y) == scores(x[p], y[q])


def test_the_bits_of_a_pair_do_not_depend_on_other_pairs() -> None:
    for d in (1, 3, 17, 100, 2048, 40_000):
        x, y = normal(6, d, 0), normal(6, d, 1)
        i, j = torch.arange(6).repeat_interleave(6), torch.arange(6).repeat(6)
        together = pair_distances(x, i, y, j)
        alone = torch.cat([pair_distances(x, i[n : n + 1], y, j[n : n + 1]) for n in range(36)])
        backwards = pair_distances(y, j.flip(0), x, i.flip(0), memory=1).flip(0)
        assert torch.equal(together, alone)
        assert torch.equal(together, backwards)


@pytest.mark.parametrize("d", [3, 200, 2048, 6000])
def test_the_error_of_a_tile_is_below_its_bound(d: int) -> None:
    x = normal(100, d, 0) + torch.cat([torch.zeros(50, d), torch.full((50, d), 30.0)])
    frame = module.Frame.of(x, x, module.MEMORY)
    placed, norms = frame.place(x, torch.float32), frame.norms[0]
    rough = frame.tile(placed, placed, norms, norms, torch.empty(100 * 100)).double()
    exact = all_distances(x, x) * frame.unit
    bound = frame.slack(norms[:, None], exact, torch.float32)
    error = (rough - exact.square()).abs()
    assert (error <= bound).all()
    assert error.max() > 0


def test_works_under_reduced_precision_and_leaves_the_setting() -> None:
    x, y = normal(200, 50, 0), normal(150, 50, 1)
    torch.set_float32_matmul_precision("medium")
    try:
        found = nearest(x, y, 2)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert_same(found, naive(x, y, 2, False))


def test_inputs_are_left_alone() -> None:
    x, y = normal(60, 9, 0).requires_grad_(), normal(50, 9, 1)
    before = x.detach().clone(), y.clone()
    assert not nearest(x, y, 2).distances.requires_grad
    neighbour_panel(x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


PEAK = """
import resource, sys, torch
from expost.evaluate.metrics.neighbours import neighbour_panel
from expost.statistics.neighbours import nearest
torch.set_num_threads(1)
x, y = torch.randn(6000, 32), torch.randn(6000, 32)
neighbour_panel(x[:1500], y[:1500], memory=4 << 20)
nearest(x[:1500], y[:1500], 3, memory=4 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
neighbour_panel(x, y, memory=int(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_bounded() -> None:
    """6000 x 6000 distances are 144 MB: peak resident memory grows by less than the bound, the results and what the products keep."""
    out = subprocess.run([sys.executable, "-c", PEAK, str(8 << 20)], capture_output=True, text=True, check=True).stdout
    assert int(out) < (8 + 16) << 10


def test_tiles_fit_into_memory() -> None:
    for d in (1, 128, 2048, 12288):
        for memory in (module._tile_bytes(module.LEAST, d, torch.float64), 10 << 20, 100 << 20, 1 << 30):
            if memory >= module._tile_bytes(module.LEAST, d, torch.float64):
                frame = module.Frame(torch.zeros(d), 1.0, (torch.zeros(1), torch.zeros(1)), memory)
                for dtype in (torch.float32, torch.float64):
                    assert module.LEAST <= frame.side(dtype) <= module.SIDE
                    assert module._tile_bytes(frame.side(dtype), d, dtype) <= memory


# The panel


def test_a_collapsed_generator_has_precision_and_no_recall() -> None:
    real = normal(500, 8, 0)
    collapsed = 0.01 * normal(500, 8, 1)
    panel = neighbour_panel(collapsed, real)
    assert panel.precision == 1.0
    assert panel.recall == 0.0
    assert panel.coverage < 0.6
    assert panel.density > 2


def test_a_generator_that_covers_everything_and_more_has_recall_and_little_precision() -> None:
    panel = neighbour_panel(normal(500, 8, 0), 0.01 * normal(500, 8, 1))
    assert panel.precision == 0.0
    assert panel.recall == 1.0
    assert (panel.density, panel.coverage) == (0.0, 0.0)


def test_half_of_the_modes_is_half_of_the_recall() -> None:
    shift = torch.zeros(8)
    shift[0] = 100
    real, fresh = torch.cat([normal(300, 8, 0), normal(300, 8, 1) + shift]), normal(600, 8, 2)
    panel = neighbour_panel(fresh, real)
    assert panel.precision > 0.85
    assert panel.recall == pytest.approx(0.45, abs=0.06)
    assert panel.coverage == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("k", "k_coverage"), [(1, 1), (3, 5), (5, 2)])
def test_panel_agrees_with_a_loop(name: str, k: int, k_coverage: int) -> None:
    real, generated = CASES[name](0), CASES[name](1)[:-9]
    expected = naive_panel(generated, real, k, k_coverage)
    assert scores(generated, real, k=k, k_coverage=k_coverage) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["features", "grid", "binary images", "few of many copies"])
def test_copies_tie_with_radii_and_are_decided_exactly(name: str) -> None:
    """A copy of a point lies exactly on the ball of every point that it is the k-th neighbour of: <= holds there and < does not."""
    real = CASES[name](0)
    generated = torch.cat([real[:50], CASES[name](1)[:50]])
    for memory in (TINY, module.MEMORY):
        found = scores(generated, real, k=2, k_coverage=2, memory=memory)
        assert found == pytest.approx(naive_panel(generated, real, 2, 2), abs=1e-12)


def test_identical_sets() -> None:
    x = normal(300, 6, 0)
    panel = neighbour_panel(x, x.clone())
    assert (panel.precision, panel.recall, panel.coverage) == (1.0, 1.0, 1.0)
    # A real ball holds its centre and k - 1 = 4 of its neighbours strictly inside, the fifth being on the sphere: 5 balls over 5.
    assert panel.density == pytest.approx(1.0, abs=1e-12)


def test_points_repeated_more_than_k_times() -> None:
    """All radii are 0, and a ball holds the copies of its centre all the same: a perfect set is covered. That it is so is said."""
    x = normal(5, 6, 0).repeat(10, 1)
    assert scores(x, x.clone()) == {"precision": 1.0, "recall": 1.0, "density": 10 / 5, "coverage": 1.0}
    panel = neighbour_panel(normal(60, 6, 1), torch.cat([x, normal(40, 6, 2)]))
    assert "50 of 90 real images have 5 or more copies: their balls have radius 0 and hold copies only" in panel.notes
    assert not any("copies" in note for note in neighbour_panel(normal(60, 6, 1), normal(90, 6, 2)).notes)
    assert all("50 of 90" in " ".join(result.notes) for result in panel.results().values())


def test_known_radii_are_used() -> None:
    x, y = normal(200, 5, 0), normal(150, 5, 1)
    radii = RealNeighbours.of(y, k=7).radii
    assert scores(x, y, real_radii=radii) == scores(x, y)
    assert scores(x, y, real_radii=torch.zeros_like(radii))["precision"] == 0.0


def test_results_carry_errors_sizes_and_notes() -> None:
    panel = neighbour_panel(normal(200, 5, 0), normal(150, 5, 1), k=2, k_coverage=4)
    results = panel.results()
    assert tuple(results) == NAMES
    assert [results[name].n for name in NAMES] == [200, 150, 200, 150]
    assert [results[name].context["k"] for name in NAMES] == [2, 2, 4, 4]
    for name in ("precision", "recall", "coverage"):
        p, n = results[name].value, results[name].n
        assert n is not None
        assert results[name].error == pytest.approx((p * (1 - p) / n) ** 0.5)
    assert "n = 150 is below" in str(panel)
    assert "200 generated and 150 real points" in str(panel)


def test_the_error_of_density_is_its_spread_over_generated_sets() -> None:
    real = normal(300, 4, 0)
    panels = [neighbour_panel(normal(300, 4, seed), real) for seed in range(1, 31)]
    spread = float(torch.tensor([panel.density for panel in panels]).std())
    claimed = sum(panel.errors["density"] for panel in panels) / len(panels)
    assert claimed == pytest.approx(spread, rel=0.4)


def test_large_equal_sets_have_no_notes() -> None:
    assert neighbour_panel(normal(neighbours.FEW, 2, 0), normal(neighbours.FEW, 2, 1)).notes == ()


# What is kept of the real data


def test_real_neighbours_survive_a_file(tmp_path: Path) -> None:
    test, train = normal(60, 5, 0), normal(90, 5, 1)
    kept = RealNeighbours.of(test, train, k=4)
    save_tensors(tmp_path / "kept.safetensors", kept.tensors(), {"data": "toy"})
    again = RealNeighbours.from_tensors(load_tensors(tmp_path / "kept.safetensors", "neighbours")[0])
    assert again.tensors().keys() == kept.tensors().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.tensors().values(), kept.tensors().values(), strict=True))
    assert again.train_nearest is not None
    assert again.test_to_train is not None
    assert torch.equal(again.radii, naive(test, test, 4, True).distances)
    assert torch.equal(again.train_nearest, naive(train, train, 1, True).distances[:, 0])
    assert_same(again.test_to_train, naive(test, train, 2, False))


def test_real_neighbours_without_training_data() -> None:
    kept = RealNeighbours.of(normal(30, 5, 0))
    assert kept.radii.shape == (30, 5)
    assert kept.train_nearest is None
    assert RealNeighbours.from_tensors(kept.tensors()).test_to_train is None


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: nearest(x, x[:, :2]), "3 and of 2 dimensions cannot be compared: use one extractor"),
        (lambda x: nearest(x, x, 11), "k = 11 nearest neighbours cannot be found among 10 points: choose 1 <= k <= 10"),
        (lambda x: nearest(x, x, 10, same=True), "k = 10 .* among 9 points"),
        (lambda x: nearest(x, x, 0), "k = 0"),
        (lambda x: nearest(x, x + 1, same=True), "same=True means that queries and points are one set"),
        (lambda x: nearest(x, x / 0), "points hold NaN or infinity in 10 of 10 rows"),
        (lambda x: nearest(x.long(), x), "queries must be a floating-point matrix"),
        (lambda x: nearest(x[:0], x), "queries have no rows"),
        (lambda x: nearest(x, x, memory=1000), "memory = 1000 bytes cannot hold a tile of 16 rows of 3 dimensions: allow at least"),
        (lambda x: nearest(3e38 * x.sign(), x), "too large for their squares"),
        (lambda x: neighbour_panel(x[:3], x, k=3), "need more than 5 real and 3 generated points, not 10 and 3"),
        (lambda x: neighbour_panel(x, x[:5]), "not 5 and 10"),
        (lambda x: neighbour_panel(x, x, k=0), "a smaller k of at least 1"),
        (lambda x: neighbour_panel(x, x, real_radii=torch.zeros(9, 5).double()), r"real_radii must be float64 distances \(10, 5 or more\)"),
        (lambda x: neighbour_panel(x, x, real_radii=torch.zeros(10, 4).double()), "use RealNeighbours.of"),
        (lambda x: RealNeighbours.from_tensors({"other": x}), "are not those of RealNeighbours"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(normal(10, 3, 0).abs() + 1)  # type: ignore[operator]
