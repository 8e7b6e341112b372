"""Principal components as features: against scikit-learn, exact on exact data, independent of batches, refusing bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from expost.evaluate.features.base import Pixels, extract
from expost.evaluate.features.pca import PCAFeatures
from expost.evaluate.metrics.frechet import frechet_distance
from expost.seeds import generator


def correlated(n: int, shape: tuple[int, int, int] = (1, 6, 5), seed: int = 0) -> Tensor:
    """Images in [0, 1] with a decaying spectrum."""
    size = shape[0] * shape[1] * shape[2]
    g = generator("correlated", seed)
    directions = torch.linalg.qr(torch.randn(size, size, generator=generator("directions"))).Q
    return (0.5 + 0.05 * (torch.randn(n, size, generator=g) * 0.9 ** torch.arange(size)) @ directions).clamp(0, 1).reshape(n, *shape)


@pytest.mark.parametrize(("n", "shape"), [(400, (1, 6, 5)), (25, (1, 6, 5)), (60, (3, 6, 5))])
def test_components_and_explained_variance_are_scikit_learns(n: int, shape: tuple[int, int, int]) -> None:
    from sklearn.decomposition import PCA

    x, k = correlated(n, shape), 7
    ours, theirs = PCAFeatures.of(x, k), PCA(k, svd_solver="full").fit(x.flatten(1).double().numpy())
    assert ours.variances is not None
    torch.testing.assert_close(ours.variances, torch.from_numpy(theirs.explained_variance_), rtol=1e-9, atol=0)
    assert ours.explained == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-9)
    overlap = ours.components @ torch.from_numpy(theirs.components_).T
    torch.testing.assert_close(overlap.abs(), torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-6)
    projected = torch.from_numpy(theirs.transform(x.flatten(1).double().numpy())) * overlap.diagonal().sign() / ours.scale
    torch.testing.assert_close(ours(x), projected.float(), rtol=1e-4, atol=1e-5)


def test_training_features_have_mean_zero_and_mean_square_norm_one() -> None:
    x = correlated(300)
    f = extract(PCAFeatures.of(x, 9), x).double()
    torch.testing.assert_close(f.mean(0), torch.zeros(9, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(f.square().sum(1).mean()) == pytest.approx(1, abs=1e-6)
    products = f.T @ f
    assert float((products - products.diagonal().diag()).abs().max()) < 1e-4, "components are uncorrelated"
    variances = f.var(0)
    assert torch.equal(variances, variances.sort(descending=True).values)


def test_an_exact_answer() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.25, 0.75], [0.75, 0.25]]).reshape(4, 1, 1, 2)
    pca = PCAFeatures.of(x, 2)
    half = 0.5**0.5
    torch.testing.assert_close(pca.components, torch.tensor([[half, half], [half, -half]], dtype=torch.float64))
    assert pca.mean.tolist() == [0.5, 0.5]
    assert pca.scale == pytest.approx((1.25 / 4) ** 0.5)
    assert pca.variances is not None
    assert pca.variances.tolist() == pytest.approx([1 / 3, 1 / 12])


def test_all_components_are_a_rotation_of_the_pixels() -> None:
    x, y = correlated(300), correlated(300, seed=1) ** 1.1
    pca = PCAFeatures.of(x, 30)
    back = extract(pca, y).double() * pca.scale @ pca.components + pca.mean
    torch.testing.assert_close(back.reshape(y.shape), y.double(), rtol=0, atol=1e-6)
    a, b = float(frechet_distance(extract(pca, x), extract(pca, y))), float(frechet_distance(x.flatten(1), y.flatten(1)))
    assert a * pca.scale**2 == pytest.approx(b, rel=1e-5)
    assert Pixels((1, 6, 5)).identity != pca.identity


def test_identity_is_made_of_mean_components_and_scale() -> None:
    x = correlated(200)
    pca = PCAFeatures.of(x, 4)
    assert pca.name == "pca-4"
    assert pca.label == f"FD[pca-4@{pca.hash}]"
    assert PCAFeatures.of(x, 4).identity == pca.identity
    assert PCAFeatures(pca.shape, pca.mean, pca.components, pca.scale).identity == pca.identity, "round trip through its parts"
    assert PCAFeatures.of((x * 255).round().to(torch.uint8), 4).hash != pca.hash
    changed = [
        (pca.mean + 1e-9, pca.components, pca.scale),
        (pca.mean, pca.components.flip(0), pca.scale),
        (pca.mean, pca.components, pca.scale * 2),
    ]
    hashes = {PCAFeatures(pca.shape, *parts).hash for parts in changed}
    assert len(hashes | {pca.hash}) == 4
    with pytest.raises(ValueError, match="not fitted here"):
        _ = PCAFeatures(pca.shape, pca.mean, pca.components, pca.scale).explained


def test_signs_and_features_depend_on_neither_order_nor_batch_nor_stored_type() -> None:
    levels = (correlated(120) * 255).round().to(torch.uint8)
    pca, other = PCAFeatures.of(levels, 5), PCAFeatures.of(levels.flip(0), 5)
    torch.testing.assert_close(pca.components, other.components, rtol=0, atol=1e-9)
    assert bool((pca.components.gather(1, pca.components.abs().argmax(1, keepdim=True)) > 0).all())
    f = pca(levels)
    assert f.dtype == torch.float32
    for batch in (1, 7, 120):
        torch.testing.assert_close(extract(pca, levels, batch_size=batch), f, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(pca(levels.float() / 255), f, rtol=0, atol=0)
    assert pca.to("cpu") is pca


def test_a_limit_takes_a_fixed_part() -> None:
    x = correlated(400)
    assert PCAFeatures.of(x, 3, limit=100).hash == PCAFeatures.of(x, 3, limit=100).hash != PCAFeatures.of(x, 3, limit=None).hash
    assert PCAFeatures.of(x, 3, limit=None).hash == PCAFeatures.of(x, 3, limit=400).hash


def test_bad_input_is_refused_in_one_sentence() -> None:
    x = correlated(20)
    for images, dim, sentence in (
        (x[:1], 1, "at least 2 images"),
        (x, 0, "at least 1"),
        (x, 20, r"vary in 19 directions .* dim=19 at most"),
        (x, 31, "dim=19"),
        (torch.full((9, 1, 2, 2), 0.5), 1, "vary in 0 directions"),
        (x.flatten(1), 2, r"\(n, C, H, W\)"),
        (x * 2, 2, r"\[0, 1\]"),
        (x * torch.nan, 2, "NaN"),
    ):
        with pytest.raises(ValueError, match=sentence):
            PCAFeatures.of(images, dim)
    pca = PCAFeatures.of(x, 3)
    with pytest.raises(ValueError, match=r"takes images of shape \(1, 6, 5\)"):
        pca(torch.rand(2, 1, 5, 6))
    for parts in ((pca.mean[1:], pca.components, 1.0), (pca.mean, pca.components * 2, 1.0), (pca.mean, pca.components, 0.0)):
        with pytest.raises(ValueError, match=r"PCAFeatures\.of"):
            PCAFeatures(pca.shape, *parts)
