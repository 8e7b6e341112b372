"""Class masses, entropies and coverage against closed forms, exhaustive resampling and simulation; how a latent space is cut into classes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expost import heads
from expost.diagnose.classes.classify import HOLE, LatentClasses, assign, outputs, prior_codes
from expost.diagnose.classes.masses import THRESHOLDS, class_masses, coverage, renyi_entropy
from expost.distributions import point
from toys import convolutional, model

ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0, math.inf)


def drawn(p: list[float], n: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor(p, dtype=torch.float64), n, replacement=True, generator=g)


# -- latent classes ------------------------------------------------------------------------------------------------------------------------


def pooled(x: Tensor) -> Tensor:
    return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3)), x[:, 0, 0, 0]], 1)


def test_latent_classes_are_the_classifier_of_decoded_means() -> None:
    m, z = convolutional(), prior_codes(17, 2)
    m.train()
    expected = pooled(m.decode_points(z))
    assert torch.allclose(LatentClasses(m, pooled)(z), expected, atol=1e-6)
    assert torch.allclose(LatentClasses(m, pooled, batch_size=3)(z), expected, atol=1e-6)
    assert m.training, "the model's mode is restored"
    assert LatentClasses(m, pooled).d == 2


def test_latent_classes_are_differentiable_but_only_where_gradients_are_on() -> None:
    m, z = convolutional(), prior_codes(5, 2).requires_grad_()
    logits = LatentClasses(m, pooled, batch_size=2)(z)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), z)
    assert bool((gradient.abs().sum(1) > 0).all())
    assert all(p.grad is None for p in m.parameters())
    with torch.no_grad():
        assert not LatentClasses(m, pooled)(z).requires_grad


def test_means_of_images_are_clamped_and_points_are_not() -> None:
    wide = convolutional(heads.Gaussian(1.0))  # no link: means leave [0, 1]
    z = 20 * prior_codes(50, 2)
    wide.eval()
    seen: list[Tensor] = []
    with torch.no_grad():
        raw = point(wide.decode(z))
        LatentClasses(wide, lambda x: seen.append(x) or pooled(x))(z)  # type: ignore[func-returns-value]
    assert float(raw.min()) < 0
    assert torch.allclose(torch.cat(seen), raw.clamp(0, 1))
    points = model()
    assert torch.allclose(LatentClasses(points, lambda x: x)(z), points.decode_points(z), atol=1e-5)


def test_assignment() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.1, 0.0, 0.2], [0.0, 9.0, 0.0]])
    assert assign(logits).tolist() == [0, 2, 1]
    assert assign(logits, 0.9).tolist() == [HOLE, HOLE, 1]
    assert assign(logits, 0.5).tolist() == [0, HOLE, 1]
    assert assign(torch.tensor([3, 1])).tolist() == [3, 1]


def test_errors_of_classifications_name_the_remedy() -> None:
    z = prior_codes(4, 2)
    with pytest.raises(ValueError, match=r"return logits \(n, K\)"):
        assign(torch.tensor([0, 1]), 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        assign(torch.zeros(2, 2), 1.5)
    with pytest.raises(ValueError, match="integer labels"):
        outputs(lambda z: z[:, 0], z)
    with pytest.raises(ValueError, match="integer labels"):
        outputs(lambda z: z[:1], z)
    with pytest.raises(ValueError, match="codes hold NaN"):
        outputs(lambda z: z, z / 0)
    with pytest.raises(ValueError, match="logits hold NaN"):
        outputs(lambda z: z / 0, z)
    with pytest.raises(ValueError, match="at least one row"):
        outputs(lambda z: z, z[:0])
    with pytest.raises(ValueError, match="a function of a batch"):
        LatentClasses(model(), lambda x: x.argmax(1))(z)
    with pytest.raises(ValueError, match="stack them"):
        LatentClasses(model(), lambda x: x)(z[0])
    with pytest.raises(ValueError, match="at least 1"):
        prior_codes(0, 2)


def test_prior_codes_are_standard_normal_and_keyed() -> None:
    z = prior_codes(20_000, 3, seed=1)
    assert torch.equal(z, prior_codes(20_000, 3, seed=1))
    assert not torch.equal(z, prior_codes(20_000, 3, seed=2))
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=0.03)
    assert torch.allclose(z.T.cov(), torch.eye(3), atol=0.04)


# -- entropies -----------------------------------------------------------------------------------------------------------------------------


def test_entropies_of_known_masses() -> None:
    p = torch.tensor([0.5, 0.25, 0.25])
    assert renyi_entropy(p, 1) == pytest.approx(1.5 * math.log(2))
    assert renyi_entropy(p, 2) == pytest.approx(-math.log(0.375))
    assert renyi_entropy(p, math.inf) == pytest.approx(math.log(2))
    assert renyi_entropy(p, 0) == pytest.approx(math.log(3))
    assert renyi_entropy(p, 400) == pytest.approx(math.log(2) * 400 / 399), "large orders must not underflow"
    assert renyi_entropy(torch.tensor([1.0, 0.0]), 2) == 0
    example = torch.tensor([0.19, 0.17, 0.15, 0.13, 0.11, 0.09, 0.07, 0.05, 0.03, 0.01])
    assert float(example.square().sum()) == pytest.approx(0.133, abs=1e-6)
    assert renyi_entropy(example, 2) == pytest.approx(-math.log(0.133), abs=1e-5)


masses_of = st.lists(st.floats(1e-6, 1), min_size=2, max_size=30).map(lambda w: torch.tensor(w, dtype=torch.float64) / sum(w))


@given(masses_of)
@settings(max_examples=60, deadline=None)
def test_entropies_fall_in_their_order_and_reach_log_k_at_equal_masses_only(p: Tensor) -> None:
    values = [renyi_entropy(p, a) for a in ALPHAS]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(values))
    assert values[-1] >= 0
    assert values[0] <= math.log(len(p)) + 1e-9
    assert renyi_entropy(torch.full((len(p),), 1 / len(p), dtype=torch.float64), 2) == pytest.approx(math.log(len(p)))


def test_bad_masses_and_orders() -> None:
    for bad in (torch.tensor([0.5, 0.4]), torch.tensor([1.5, -0.5]), torch.ones(2, 2) / 4, torch.tensor([math.nan, 1.0])):
        with pytest.raises(ValueError, match="sum to 1"):
            renyi_entropy(bad)
    with pytest.raises(ValueError, match="at least 0"):
        renyi_entropy(torch.tensor([0.5, 0.5]), -1)


# -- measured masses -----------------------------------------------------------------------------------------------------------------------


def test_masses_count_codes_and_holes() -> None:
    labels = torch.tensor([0] * 40 + [2] * 60 + [-1] * 100)
    found = class_masses(labels, classes=4)
    assert found.p.tolist() == [0.4, 0.0, 0.6, 0.0]
    assert found.counts.tolist() == [40, 0, 60, 0]
    assert (found.n, found.seen, found.classes, found.holes) == (200, 2, 4, 0.5)
    assert found.errors[0] == pytest.approx(math.sqrt(0.24 / 100))
    assert found.holes_error == pytest.approx(math.sqrt(0.25 / 200))
    assert any("never seen" in note for note in found.notes)
    assert any("no class" in note for note in found.notes)
    assert "collision" in str(found)


def test_collision_is_the_unbiased_count_of_pairs() -> None:
    labels = drawn([0.6, 0.3, 0.1], 50)
    equal = (labels[:, None] == labels).sum() - len(labels)
    assert class_masses(labels).collision().value == pytest.approx(float(equal) / (50 * 49), rel=1e-9)


def every_count(n: int, p: list[float]) -> list[tuple[Tensor, float]]:
    """All ways to see three classes in n codes, with their probabilities."""
    found = []
    for a in range(n + 1):
        for b in range(n + 1 - a):
            counts = (a, b, n - a - b)
            log_p = math.lgamma(n + 1) + sum(c * math.log(q) - math.lgamma(c + 1) for c, q in zip(counts, p, strict=True))
            found.append((torch.tensor([0] * a + [1] * b + [2] * counts[2]), math.exp(log_p)))
    return found


@pytest.mark.parametrize("p", [[1 / 3] * 3, [0.6, 0.3, 0.1]], ids=["equal", "uneven"])
def test_corrected_entropies_are_almost_unbiased(p: list[float]) -> None:
    """Expectations over all counts, exact."""
    truth = torch.tensor(p, dtype=torch.float64)
    every = [(class_masses(labels, classes=3), weight) for labels, weight in every_count(20, p)]
    assert sum(w for _, w in every) == pytest.approx(1)
    assert sum(w * m.collision().value for m, w in every) == pytest.approx(float(truth.square().sum()), abs=1e-9)
    for alpha in (1.0, 2.0):
        corrected = sum(w * m.entropy(alpha).value for m, w in every) - renyi_entropy(truth, alpha)
        plug_in = sum(w * renyi_entropy(m.p, alpha) for m, w in every) - renyi_entropy(truth, alpha)
        assert plug_in < -0.03
        assert abs(corrected) < 0.35 * abs(plug_in)


@pytest.mark.parametrize("p", [[0.25] * 4, [0.6, 0.3, 0.07, 0.03]], ids=["equal", "uneven"])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_errors_of_entropies_are_those_of_repetition(p: list[float], alpha: float) -> None:
    results = [class_masses(drawn(p, 200, seed), classes=4).entropy(alpha) for seed in range(200)]
    spread = float(torch.tensor([r.value for r in results], dtype=torch.float64).std())
    claimed = math.sqrt(sum((r.error or 0) ** 2 for r in results) / 200)
    assert 0.75 < claimed / spread < 1.6  # the jackknife's error is a little large at equal masses


def test_coverage_over_thresholds() -> None:
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, generator=g)
    found = coverage(logits)
    probability, label = logits.double().softmax(1).max(1)
    for i, threshold in enumerate(THRESHOLDS):
        assert found.at(threshold) == pytest.approx(float((probability >= threshold).double().mean()))
        for k in range(4):
            assert float(found.by_class[i, k]) == pytest.approx(float(((probability >= threshold) & (label == k)).double().mean()))
    assert bool((found.covered.diff() <= 0).all())
    assert class_masses(logits, threshold=0.9).holes == pytest.approx(1 - found.at(0.9))
    assert len(found.table().rows) == len(THRESHOLDS)
    with pytest.raises(ValueError, match="logits"):
        coverage(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="at least one threshold"):
        coverage(logits, ())


def test_too_few_codes_for_masses() -> None:
    with pytest.raises(ValueError, match="lower the threshold"):
        class_masses(torch.zeros(5, 3), threshold=0.9)
    with pytest.raises(ValueError, match="classes="):
        class_masses(torch.tensor([0, 3]), classes=2)
    assert any("rough" in note for note in class_masses(torch.tensor([0, 1, 1])).notes)


def test_logits_that_are_no_numbers_and_labels_that_are_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        class_masses(torch.tensor([[0.0, float("nan")], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="integers"):
        class_masses(torch.tensor([0.3, 0.4]))
    with pytest.raises(TypeError, match="tensor"):
        class_masses([0, 1])  # type: ignore[arg-type]
