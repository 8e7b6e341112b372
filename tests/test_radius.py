"""Every estimator of the class radius against partitions whose radius is known code by code; what they promise and refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expost.diagnose.classes.attack import attack_radius, refined_radius
from expost.diagnose.classes.bounds import half_space_radius, isoperimetric_bound, radius_bounds, sector_radius
from expost.diagnose.classes.classify import Classify, LatentClasses, outputs, prior_codes
from expost.diagnose.classes.grid import class_grid, grid_radius
from expost.diagnose.classes.masses import class_masses
from expost.diagnose.classes.radius import ClassRadius, halved, segment_radius, smallest
from expost.papers.manoj2018.claims import sectors, voronoi
from toys import model

Z = prior_codes(400, 2, seed=3)


def many_segments(classify: Classify, z: Tensor) -> ClassRadius:
    return segment_radius(classify, z, repeats=200)


def refined(classify: Classify, z: Tensor) -> ClassRadius:
    return refined_radius(classify, z, segment_radius(classify, z))


ESTIMATORS: dict[str, Callable[[Classify, Tensor], ClassRadius]] = {
    "segments": segment_radius, "many segments": many_segments, "attack": attack_radius, "refined": refined,
    "one target": lambda classify, z: attack_radius(classify, z, targets=1),
}  # fmt: skip


def exact(z: Tensor, k: int) -> Tensor:
    """Distance of each code to the nearest ray between K sectors."""
    angle = torch.atan2(z[:, 1], z[:, 0]).double()
    inside = (angle + math.pi / k) % (2 * math.pi / k)
    return z.double().norm(dim=1) * torch.minimum(inside, 2 * math.pi / k - inside).sin()


@pytest.mark.parametrize("k", [2, 5, 10, 20])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_sectors_and_half_spaces(name: str, k: int) -> None:
    found = ESTIMATORS[name](sectors(k), Z)
    truth = exact(Z, k)
    assert bool((found.radii >= truth - 1e-5).all()), "an estimate below the radius"
    assert found.missing == 0
    assert found.error is not None
    closed = half_space_radius() if k == 2 else sector_radius(k)
    if name != "segments":  # twenty random directions are too few
        assert abs(found.mean - closed) < 3 * found.error
    excess = float((found.radii - truth).mean()) / closed
    assert excess < {"segments": 0.25, "many segments": 0.02, "attack": 0.05, "refined": 0.02, "one target": 0.05}[name]


@pytest.mark.parametrize("k", [2, 5, 10, 20])
def test_grids(k: int) -> None:
    grid = class_grid(sectors(k), nodes=301)
    found = grid_radius(grid)
    closed = half_space_radius() if k == 2 else sector_radius(k)
    assert closed < found.mean < closed + found.tolerance
    assert torch.allclose(grid.masses(), torch.full((k,), 1 / k, dtype=torch.float64), atol=0.02)
    finer = grid_radius(class_grid(sectors(k), nodes=601))
    assert finer.mean - closed < 0.8 * (found.mean - closed)
    codes = torch.stack([grid.axis.expand(301, 301), grid.axis[:, None].expand(301, 301)], -1).flatten(0, 1)
    assert bool((found.radii >= exact(codes, k) - 1e-6).all())
    inside = codes.norm(dim=1) < 4.4  # the nearest ray is inside the window
    assert float((found.radii <= exact(codes, k) + found.tolerance)[inside].double().mean()) > 0.999
    assert found.error is None
    truth, order = exact(codes, k).sort()
    half = truth[int((grid.weights.flatten()[order].cumsum(0) < 0.5).sum())]
    assert 0 <= found.median - float(half) <= found.tolerance


def test_grid_distances_are_those_of_a_naive_search() -> None:
    classify = voronoi(4, 2, seed=1)
    grid = class_grid(
        lambda z: torch.where(z.norm(dim=1, keepdim=True) < 1, 0.0, 10.0) * classify(z), nodes=25, half_width=3, threshold=0.6
    )
    found = grid_radius(grid)
    assert 0 < grid.holes < 1
    a, b = torch.nonzero(grid.labels >= 0, as_tuple=True)
    z, labels = torch.stack([grid.axis[b], grid.axis[a]], 1), grid.labels[a, b]
    apart = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").masked_fill(labels[:, None] == labels, math.inf).amin(1)
    assert torch.allclose(found.radii, apart)
    assert torch.allclose((found.nearest - z).norm(dim=1), found.radii)
    weights = torch.exp(-0.5 * z.square().sum(1))
    assert found.mean == pytest.approx(float((weights * apart).sum() / weights.sum()))
    assert found.holes == pytest.approx(grid.holes)


@pytest.mark.parametrize(("k", "d"), [(6, 3), (10, 8), (40, 8)])
def test_no_estimate_of_cones_exceeds_the_isoperimetric_bound(k: int, d: int) -> None:
    classify, z = voronoi(k, d), prior_codes(300, d, seed=5)
    bounds = radius_bounds(class_masses(outputs(classify, prior_codes(20_000, d))))
    for name in ("attack", "refined"):
        found = ESTIMATORS[name](classify, z)
        assert found.error is not None
        assert found.mean <= bounds.isoperimetric.value + 3 * found.error


def test_refinement_finds_the_nearest_plane_of_cones() -> None:
    """Linear logits: the exact radius is the distance to the nearest of the planes between a code's class and the others, if that is reached."""
    classify, z = voronoi(5, 4), prior_codes(200, 4, seed=2)
    start = segment_radius(classify, z)
    found = refined_radius(classify, z, start)
    directions = classify(torch.eye(4)).T  # (K, d)
    own = classify(z).argmax(1)
    gaps = classify(z).gather(1, own[:, None]) - classify(z)
    planes = gaps / (directions[own][:, None] - directions).norm(dim=2)
    lower = planes.scatter(1, own[:, None], math.inf).amin(1).double()
    assert bool((found.radii >= lower - 1e-5).all())
    assert bool((found.radii <= start.radii).all())
    assert float((found.radii < lower + 1e-3).double().mean()) > 0.8
    assert float((start.radii < lower + 1e-3).double().mean()) < 0.05


def test_found_codes_are_of_another_class_at_the_stated_distance() -> None:
    classify = sectors(7)
    for name in ("segments", "attack", "refined"):
        found = ESTIMATORS[name](classify, Z)
        assert torch.allclose((found.nearest.double() - Z.double()).norm(dim=1), found.radii)
        assert bool((classify(found.nearest).argmax(1) != found.labels).all())
        assert torch.equal(found.labels, classify(Z).argmax(1))


def test_halving_reaches_its_tolerance() -> None:
    z, far = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[4.0, 0.0]], dtype=torch.float64)

    def beyond(z: Tensor) -> Tensor:
        return (z[:, 0] > 1.2345).long()

    for tolerance in (1e-1, 1e-4, 1e-7):
        found = halved(beyond, z, torch.tensor([0]), far, tolerance=tolerance)
        assert 0 < float(found[0, 0]) - 1.2345 < tolerance
        assert bool(beyond(found) == 1)


def test_dropping_hopeless_directions_changes_nothing() -> None:
    """The race of directions gives what halving every one of them gives."""
    classify, z = sectors(6), Z[:50]
    pool = prior_codes(4096, 2, seed=0)
    raced = segment_radius(classify, z, repeats=8, pool=pool)
    own, labels = classify(z).argmax(1), classify(pool).argmax(1)
    from expost.seeds import generator

    draws = torch.rand(50, 8, generator=generator("segments", 0), dtype=torch.float64)
    for i in range(50):
        candidates = torch.nonzero(labels != own[i]).flatten()
        chosen = candidates[(draws[i] * len(candidates)).long()]
        ends = halved(classify, z[i].expand(8, 2), own[i].expand(8), pool[chosen])
        assert float((ends.double() - z[i].double()).norm(dim=1).min()) == pytest.approx(float(raced.radii[i]), abs=1e-6)


# -- holes -----------------------------------------------------------------------------------------------------------------------------------


def banded(z: Tensor) -> Tensor:
    """Logits of two classes with a hole of width 1 between them at threshold .9: x < -1/2, x > 1/2."""
    steep = 2 * math.log(9) * z[:, 0]
    return torch.stack([-steep / 2, steep / 2], 1)


@pytest.mark.parametrize("name", ["segments", "attack", "refined"])
def test_holes_are_no_other_class_and_are_left_out(name: str) -> None:
    z = prior_codes(500, 2, seed=1)
    if name == "segments":
        found = segment_radius(banded, z, threshold=0.9, repeats=300)
    elif name == "attack":
        found = attack_radius(banded, z, threshold=0.9)
    else:
        found = refined_radius(banded, z, segment_radius(banded, z, threshold=0.9), threshold=0.9)
    kept = z[:, 0].abs() >= 0.5
    truth = z[kept, 0].abs().double() + 0.5
    assert found.n == int(kept.sum())
    assert found.holes == pytest.approx(1 - float(kept.double().mean()))
    assert bool((found.radii >= truth - 1e-5).all())
    assert float((found.radii - truth).mean()) < 0.02
    assert any("no class" in note for note in found.notes)
    without = segment_radius(banded, z, repeats=300)
    assert without.n == 500
    assert without.mean < found.mean


def test_a_grid_with_a_hole() -> None:
    grid = class_grid(banded, nodes=301, threshold=0.9)
    found = grid_radius(grid)
    inside = torch.special.ndtr(torch.tensor(-0.5, dtype=torch.float64))
    assert grid.holes == pytest.approx(1 - 2 * float(inside), abs=0.01)
    beyond = math.exp(-0.125) / math.sqrt(2 * math.pi) / float(inside)  # E[x | x > 1/2]
    assert found.mean == pytest.approx(beyond + 0.5, abs=2 * found.tolerance)
    assert found.notes


# -- results ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["segments", "attack", "refined"])
def test_same_seed_same_radii_and_chunks_do_not_matter(name: str) -> None:
    classify, z = voronoi(8, 5), prior_codes(60, 5)
    first, second = ESTIMATORS[name](classify, z), ESTIMATORS[name](classify, z)
    assert torch.equal(first.radii, second.radii)
    assert torch.equal(first.nearest, second.nearest)
    searches = {"segments": segment_radius, "attack": attack_radius}
    if name in searches:
        assert torch.allclose(searches[name](classify, z, chunk=7).radii, first.radii, atol=1e-4)
        assert not torch.equal(searches[name](classify, z, seed=1).radii, first.radii)
    else:
        assert torch.allclose(refined_radius(classify, z, segment_radius(classify, z), chunk=7).radii, first.radii, atol=1e-4)


def test_mean_error_median_and_tables() -> None:
    found = segment_radius(sectors(5), Z)
    assert found.mean == pytest.approx(float(found.radii.mean()))
    assert found.error == pytest.approx(float(found.radii.std()) / 20)
    assert found.median == pytest.approx(float(found.radii.quantile(0.5)))
    result = found.result()
    assert (result.value, result.error, result.n) == (found.mean, found.error, 400)
    assert [row[0] for row in found.by_class().rows] == ["0", "1", "2", "3", "4"]
    assert "median" in str(found)
    assert any("fewer than" in note for note in segment_radius(sectors(5), Z[:20]).notes)


def test_smallest_of_estimates() -> None:
    classify = sectors(5)
    one, two = segment_radius(classify, Z), segment_radius(classify, Z, seed=1)
    both = smallest(one, two)
    assert torch.equal(both.radii, torch.minimum(one.radii, two.radii))
    assert torch.allclose((both.nearest.double() - Z.double()).norm(dim=1), both.radii)
    assert smallest(one) is one
    with pytest.raises(ValueError, match="same codes"):
        smallest(one, segment_radius(classify, prior_codes(400, 2, seed=9)))
    with pytest.raises(ValueError, match="same codes"):
        smallest(one, segment_radius(classify, Z[:10]))
    with pytest.raises(ValueError, match="at least one"):
        smallest()


def test_codes_from_which_nothing_is_found_are_counted() -> None:
    def right(z: Tensor) -> Tensor:
        """Class 1 right of x = 1, class 0 elsewhere."""
        return torch.stack([1 - z[:, 0], z[:, 0] - 1], 1)

    z = torch.tensor([[0.0, 0.0], [3.0, 0.0], [-4.0, 50.0], [-1000.0, 0.0]])
    found = attack_radius(right, z, restarts=1)
    assert torch.allclose(found.radii[:3], torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), atol=0.05)
    assert found.found.tolist() == [True, True, True, False]
    assert found.missing == 0.25
    assert math.isinf(float(found.radii[3]))
    assert bool(found.nearest[3].isnan().all())
    assert math.isfinite(found.mean)
    assert any("no other class was found" in note for note in found.notes)


def test_an_autoencoder_with_a_classifier_of_points() -> None:
    m = model()
    directions = prior_codes(6, 5, seed=4)
    classify = LatentClasses(m, lambda x: x @ directions)
    grid = class_grid(classify, nodes=401)
    truth = grid_radius(grid)
    z = prior_codes(500, 2, seed=6)
    found = refined_radius(classify, z, smallest(attack_radius(classify, z), segment_radius(classify, z)))
    assert found.error is not None
    assert abs(found.mean - truth.mean) < 3 * found.error + truth.tolerance
    assert found.mean <= isoperimetric_bound(grid.masses()) + 3 * found.error
    sampled = class_masses(outputs(classify, prior_codes(20_000, 2)), classes=5).p
    assert torch.allclose(sampled[: len(grid.masses())], grid.masses(), atol=0.02)


# -- refusals --------------------------------------------------------------------------------------------------------------------------------


def one_class(z: Tensor) -> Tensor:
    return torch.stack([z[:, 0].square() + 1, -z[:, 0].square()], 1)


def test_one_class_has_no_radius() -> None:
    with pytest.raises(ValueError, match="only one class"):
        segment_radius(one_class, Z)
    with pytest.raises(ValueError, match="only one class"):
        attack_radius(one_class, Z[:20], steps=3)
    with pytest.raises(ValueError, match="only one class"):
        grid_radius(class_grid(one_class, nodes=11))


def test_no_code_in_a_class() -> None:
    def unsure(z: Tensor) -> Tensor:
        return 0 * z

    with pytest.raises(ValueError, match="lower it"):
        segment_radius(unsure, Z, threshold=0.9)
    with pytest.raises(ValueError, match="lower it"):
        class_grid(unsure, nodes=5, threshold=0.9)


def test_gradients_are_needed_where_they_are_used() -> None:
    def labels(z: Tensor) -> Tensor:
        return (z[:, 0] > 0).long()

    def detached(z: Tensor) -> Tensor:
        return sectors(3)(z.detach())

    start = segment_radius(labels, Z)
    with pytest.raises(ValueError, match="use segment_radius"):
        attack_radius(labels, Z)
    with pytest.raises(ValueError, match="follows the gradient of logits"):
        refined_radius(labels, Z, start)
    with pytest.raises(ValueError, match="without a gradient"):
        attack_radius(detached, Z)
    with pytest.raises(ValueError, match="without a gradient"):
        refined_radius(detached, Z, segment_radius(detached, Z))


def test_other_refusals() -> None:
    classify = sectors(4)
    with pytest.raises(ValueError, match="of other codes"):
        refined_radius(classify, Z, segment_radius(classify, Z[:9]))
    with pytest.raises(ValueError, match="of other codes"):
        refined_radius(classify, Z, grid_radius(class_grid(classify, nodes=21)))
    with pytest.raises(ValueError, match="two dimensions only, these have 3"):
        class_grid(LatentClasses(model(latent=3), lambda x: x))
    with pytest.raises(ValueError, match="at least 3 nodes"):
        class_grid(classify, nodes=2)
    with pytest.raises(ValueError, match="at least one direction"):
        segment_radius(classify, Z, repeats=0)
    with pytest.raises(ValueError, match="at least one step"):
        attack_radius(classify, Z, steps=0)
