"""Scores of features under changes that must change nothing, or everything by one factor: units from 1e-200 to 1e200, order, repetition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expost.diagnose.codes.mismatch import c2st, mmd
from expost.evaluate.metrics.fld import feature_likelihood
from expost.evaluate.metrics.frechet import FeatureStats, extrapolated, frechet_distance
from expost.evaluate.metrics.kid import kernel_distance
from expost.evaluate.metrics.memorisation import authenticity, cells_of, copy_distance, data_copying, nearest_neighbour_ratio
from expost.evaluate.metrics.neighbours import RealNeighbours, neighbour_panel
from expost.evaluate.metrics.prd import prd
from expost.seeds import generator
from expost.statistics.kmeans import lloyd
from expost.statistics.neighbours import nearest

Sets = tuple[Tensor, Tensor, Tensor]


def sets(n: int = 120, d: int = 6) -> Sets:
    """Generated, test and training features, float64."""
    g = generator("metamorphic")
    generated, test, train = (
        torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64) for _ in range(3)
    )
    return generated + 0.3, test, torch.cat([train, generated[:20] + 0.301])


def panel(generated: Tensor, test: Tensor, train: Tensor) -> dict[str, float]:
    radii = RealNeighbours.of(test).radii  # kept in the unit of the features
    found = neighbour_panel(generated, test).results(), neighbour_panel(generated, test, real_radii=radii).results()
    assert all(found[0][name].value == found[1][name].value for name in found[0])
    return {name: result.value for name, result in found[0].items()}


#: What has no unit.
SCALE_FREE: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "precision, recall, density, coverage": panel,
    "PRD": lambda g, t, s: [float(r) for r in prd(g, t, clusters=5, runs=2).results().values()],
    "PRD, sklearn": lambda g, t, s: [float(r) for r in prd(g, t, clusters=5, runs=2, engine="sklearn").results().values()],
    "AuthPct": lambda g, t, s: float(authenticity(g, s)),
    "NN ratio": lambda g, t, s: float(nearest_neighbour_ratio(g, s)),
    "copy distance": lambda g, t, s: float(copy_distance(g, t, s)),
    "C_T": lambda g, t, s: float(data_copying(g, t, s, cells=2)),
    "C_T, cells known": lambda g, t, s: float(data_copying(g, t, s, centres=cells_of(s, 2))),
    "C_T after PCA": lambda g, t, s: float(data_copying(g, t, s, cells=2, pca=3)),
    "FLD": lambda g, t, s: [float(r) for r in feature_likelihood(g, t, s).results().values()],
    "clusters": lambda g, t, s: lloyd(s, 3).labels.tolist(),
    "nearest": lambda g, t, s: nearest(g, s, 3).indices.tolist(),
    "two samples": lambda g, t, s: [mmd(g, t, permutations=50).value, mmd(g, t, permutations=50, kernel="rbf").value],
    "classifier": lambda g, t, s: float(c2st(g, t, classifier="logistic")),
}
scale = pytest.mark.parametrize("exponent", [-900, -530, -60, 335, 900])


@pytest.fixture(scope="module")
def plain() -> dict[str, object]:
    return {name: score(*sets()) for name, score in SCALE_FREE.items()}


@scale
@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_unit_of_features_does_not_matter(name: str, exponent: int, plain: dict[str, object]) -> None:
    """Powers of two round nothing, so that even the last bit stays, but where a unit is taken by a logarithm."""
    found = SCALE_FREE[name](*(x * 2.0**exponent for x in sets()))
    assert found == (pytest.approx(plain[name], rel=1e-9) if name == "two samples" else plain[name])


@scale
def test_a_distance_scales_with_its_unit(exponent: int) -> None:
    generated, test, _ = sets()
    base, scaled = frechet_distance(generated, test), lambda x: x * 2.0**exponent
    if abs(exponent) > 500:
        with pytest.raises(ValueError, match="beyond the range of float64: multiply both sets by one constant"):
            frechet_distance(scaled(generated), scaled(test))
        return
    for few in (slice(None), slice(0, 5)):  # as many rows as dimensions, and fewer
        base, found = (frechet_distance(unit(generated[few]), unit(test[few])) for unit in (lambda x: x, scaled))
        assert found.value * 2.0**-exponent * 2.0**-exponent == pytest.approx(base.value, rel=1e-9)
        assert found.rank == base.rank
    assert nearest(scaled(generated), scaled(test)).distances.tolist() == scaled(nearest(generated, test).distances).tolist()
    if abs(exponent) < 450:
        stats = [FeatureStats.from_features(scaled(x)) for x in (generated, test)]
        assert frechet_distance(*stats).value == pytest.approx(frechet_distance(scaled(generated), scaled(test)).value, rel=1e-9)
        assert extrapolated(scaled(generated), scaled(test)).value * 4.0**-exponent == pytest.approx(
            extrapolated(generated, test).value, rel=1e-6
        )
    else:
        with pytest.raises(ValueError, match="squares beyond the range of float64: multiply them by a constant"):
            FeatureStats.from_features(scaled(test))


@pytest.mark.parametrize("size", [1e100, 1e-160, 1e-30, 1e30])
def test_a_kernel_has_a_unit_and_says_where_it_ends(size: float) -> None:
    generated, test, _ = (size * x if abs(size) in (1e100, 1e-160) else size * x.float() for x in sets())
    with pytest.raises(ValueError, match=r"features .*are too (large|small) .*both sets by one constant"):
        kernel_distance(generated, test, subsets=None)


def test_a_kernel_sees_small_features() -> None:
    """k = (1 + t)³ is 1 + 3t to the last bit of float32 where t is 1e-8: without its constant nothing is lost."""
    generated, test, _ = sets()
    found = {size: float(kernel_distance(size * generated, size * test, subsets=None)) / size**2 for size in (1e-4, 1e-8, 1e-12)}
    single = float(kernel_distance((1e-4 * generated).float(), (1e-4 * test).float(), subsets=None)) / 1e-8
    assert single == pytest.approx(found[1e-4], rel=1e-4)
    assert found[1e-12] == pytest.approx(found[1e-8], rel=1e-6)
    assert found[1e-12] == pytest.approx(found[1e-4], rel=1e-3)


@pytest.mark.parametrize("name", [name for name in SCALE_FREE if name not in ("nearest", "classifier", "two samples", "PRD, sklearn")])
def test_the_order_of_images_does_not_matter(name: str, plain: dict[str, object]) -> None:
    """The test set and the generated one turned round. Not those that answer by row, or draw rows by their place."""
    generated, test, train = sets()
    assert SCALE_FREE[name](generated.flip(0), test.flip(0), train) == plain[name]


@pytest.mark.parametrize("name", ["AuthPct", "NN ratio", "copy distance", "C_T", "C_T, cells known", "C_T after PCA", "FLD"])
def test_repeating_training_images_does_not_matter(name: str, plain: dict[str, object]) -> None:
    generated, test, train = sets()
    assert SCALE_FREE[name](generated, test, train.repeat_interleave(3, 0)) == plain[name]
    assert SCALE_FREE[name](generated, test, torch.cat([train, train[:7].repeat(40, 1)])) == plain[name]


@pytest.mark.parametrize("name", SCALE_FREE)
def test_what_holds_no_number_is_named_by_its_row(name: str) -> None:
    generated, test, train = sets()
    for value in (torch.nan, torch.inf):
        broken = generated.clone()
        broken[17, 2] = value
        if name != "clusters":
            with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 120 rows \(first: row 17\)"):
                SCALE_FREE[name](broken, test, train)


def numbers(found: object) -> list[float]:
    return (
        [x for part in (found.values() if isinstance(found, dict) else found) for x in numbers(part)]
        if isinstance(found, dict | list)
        else [float(found)]
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SCALE_FREE)
def test_constants_and_single_rows_are_results_or_one_sentence(name: str) -> None:
    generated, test, train = sets()
    constant = torch.full_like(generated, 2.5)
    for changed in ((constant, test, train), (generated, constant, train), (generated, test, constant), (constant, constant, constant)):
        for few in (slice(None), slice(0, 1)):
            message, found = "", 0.0
            try:
                found = SCALE_FREE[name](*(x[few] for x in changed))
            except ValueError as error:
                message = str(error)
            assert "\n" not in message
            assert torch.tensor(numbers(found)).isfinite().all()
