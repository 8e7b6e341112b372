"""GMM and FullGaussian against closed forms, scikit-learn and torch."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from expost.density import GMM, FullGaussian, GaussianMixture
from expost.density import em as em_module
from expost.seeds import generator


def clusters(n: int = 3000, d: int = 3, k: int = 4, seed: int = 0) -> Tensor:
    g = generator("clusters", seed)
    centres = 4 * torch.randn(k, d, generator=generator("centres"))
    shapes = torch.randn(k, d, d, generator=generator("shapes")) * 0.4 + torch.eye(d)
    which = torch.randint(k, (n,), generator=g)
    return centres[which] + (shapes[which] @ torch.randn(n, d, 1, generator=g))[..., 0]


def mixture(full: bool = True) -> GaussianMixture:
    g = generator("mixture")
    factors = torch.randn(5, 3, 3, generator=g).tril(-1) + torch.diag_embed(torch.rand(5, 3, generator=g) + 0.3)
    scale = factors if full else factors.diagonal(dim1=-2, dim2=-1)
    return GaussianMixture(torch.log_softmax(torch.randn(5, generator=g), 0), torch.randn(5, 3, generator=g), scale)


@pytest.mark.parametrize("full", [True, False])
def test_distribution_equals_torch_mixture(full: bool) -> None:
    p = mixture(full)
    oracle = MixtureSameFamily(Categorical(logits=p.log_weights), MultivariateNormal(p.means, covariance_matrix=p.covariances))
    z = 2 * torch.randn(4, 7, 3)
    torch.testing.assert_close(p.log_prob(z), oracle.log_prob(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.mean, oracle.mean)
    torch.testing.assert_close(p.variance, oracle.variance)
    sample = p.sample((100_000,))
    torch.testing.assert_close(sample.mean(0), p.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(sample.var(0), p.variance, rtol=0.05, atol=0)


def test_chunks_do_not_change_log_prob(monkeypatch: pytest.MonkeyPatch) -> None:
    p, z = mixture(), torch.randn(101, 3)
    whole = p.log_prob(z)
    monkeypatch.setattr("expost.density.mixture._CHUNK", 40)
    torch.testing.assert_close(p.log_prob(z), whole)
    assert p.log_prob(z[:0]).shape == (0,)


def test_log_prob_of_another_dimension_says_so() -> None:
    with pytest.raises(ValueError, match="codes of dimension 3"):
        mixture().log_prob(torch.zeros(2, 4))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_scores_like_scikit_learn_with_the_same_parameters(covariance: str) -> None:
    import numpy as np
    from sklearn.mixture import GaussianMixture as Reference

    z = clusters()
    p = GMM(3, 4, covariance).fit(z)()  # type: ignore[arg-type]
    reference = Reference(4, covariance_type="full" if covariance == "full" else "diag")
    reference.weights_, reference.means_ = p.weights.double().numpy(), p.means.double().numpy()
    factors = np.linalg.inv(p.scale.double().numpy()).transpose(0, 2, 1) if p.full else 1 / p.scale.double().numpy()
    reference.precisions_cholesky_ = factors
    torch.testing.assert_close(p.log_prob(z).double(), torch.from_numpy(reference.score_samples(z.double().numpy())), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_fixed_point_of_scikit_learn(covariance: str) -> None:
    """The fit is where scikit-learn's own EM, in float64 on the raw codes, stays: the whitened float32 path ends at the same optimum."""
    from sklearn.mixture import GaussianMixture as Reference

    z = clusters() * torch.tensor([1.0, 100.0, 0.01]) + torch.tensor([5.0, -300.0, 0.0])
    density = GMM(3, 4, covariance, tol=1e-6, max_iter=500).fit(z)  # type: ignore[arg-type]
    p = density()
    precisions = p.covariances.double().inverse() if p.full else p.scale.double().pow(-2)
    reference = Reference(
        4, covariance_type="full" if p.full else "diag", weights_init=p.weights.double().numpy() / float(p.weights.double().sum()),
        means_init=p.means.double().numpy(), precisions_init=((precisions + precisions.mT) / 2 if p.full else precisions).numpy(),
        reg_covar=0, tol=1e-6, max_iter=500,
    ).fit(z.double().numpy())  # fmt: skip
    assert reference.n_iter_ <= 20
    assert density.report is not None
    assert density.report.log_likelihood == pytest.approx(reference.score(z.double().numpy()), abs=1e-3)


def test_as_good_as_scikit_learn_on_other_codes() -> None:
    from sklearn.mixture import GaussianMixture as Reference

    z, other = clusters(4000), clusters(2000, seed=1)
    density = GMM(3, 4).fit(z, held_out=other)
    best = max(Reference(4, random_state=s).fit(z.numpy()).score(other.numpy()) for s in range(3))
    assert density.report is not None
    assert density.report.held_out is not None
    assert density.report.held_out > best - 0.02


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_one_component_is_the_gaussian(covariance: str) -> None:
    z = clusters()
    one, gaussian = GMM(3, 1, covariance).fit(z), FullGaussian(3).fit(z)  # type: ignore[arg-type]
    torch.testing.assert_close(one.means[0], gaussian.mean, rtol=1e-4, atol=1e-4)
    expected = gaussian().covariance_matrix
    found = one().covariances[0]
    torch.testing.assert_close(found, expected if covariance == "full" else torch.diag(expected.diagonal()), rtol=1e-4, atol=1e-4)


def test_the_gaussian_is_maximum_likelihood() -> None:
    z = clusters(500)
    p = FullGaussian(3).fit(z)()
    torch.testing.assert_close(p.mean, z.mean(0))
    torch.testing.assert_close(p.covariance_matrix, torch.cov(z.mT, correction=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("units", [1e-4, 1.0, 1e4])
def test_units_do_not_matter(units: float) -> None:
    """p(u z) = p(z) / u^d, for the mixture and the Gaussian, also at extreme units."""
    z, other = clusters(), clusters(100, seed=1)
    for density in (GMM(3, 4), FullGaussian(3)):
        base = density.fit(z)().log_prob(other)
        scaled = density.fit(units * z)().log_prob(units * other) + 3 * torch.log(torch.tensor(units))
        torch.testing.assert_close(scaled, base, rtol=1e-3, atol=2e-3)


def test_fewer_codes_than_dimensions() -> None:
    z = torch.randn(6, 20)
    for density in (FullGaussian(20).fit(z), GMM(20, 2).fit(z), GMM(20, 2, "diagonal").fit(z)):
        p = density()
        assert torch.isfinite(p.log_prob(z)).all()
        assert torch.isfinite(p.sample((5,))).all()
        assert float(p.log_prob(z).mean()) > float(p.log_prob(z + 0.1).mean()), "codes off the plane must be less likely"


def test_identical_codes() -> None:
    z = torch.full((50, 3), 2.5)
    for density in (FullGaussian(3).fit(z), GMM(3, 2).fit(z)):
        assert float((density().sample((10,)) - 2.5).abs().max()) < 1e-3


def test_duplicated_codes_do_not_collapse_a_component() -> None:
    z = torch.cat([torch.zeros(200, 2), 3 + torch.randn(200, 2)])
    p = GMM(2, 5).fit(z)()
    assert torch.isfinite(p.log_prob(z)).all()


def test_more_components_than_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 11 codes, not 5"):
        GMM(2, 10).fit(torch.randn(5, 2))


def test_not_converging_is_a_note_not_a_warning() -> None:
    report = GMM(3, 6, max_iter=1, tol=1e-9).fit(clusters()).report
    assert report is not None
    assert not report.converged
    assert "raise max_iter" in report.note
    converged = GMM(3, 4, max_iter=200).fit(clusters()).report
    assert converged is not None
    assert converged.converged
    assert converged.note == ""
    assert converged.held_out is None


def test_held_out_codes_do_not_influence_the_fit() -> None:
    z = clusters()
    with_them, without = GMM(3, 4).fit(z, held_out=clusters(50, seed=9)), GMM(3, 4).fit(z)
    assert torch.equal(with_them.means, without.means)


def test_single_precision_failing_falls_back_to_double(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    original = em_module._iterate

    def fragile(model: object, white: Tensor, tol: float, max_iter: int) -> None:
        seen.append(white.dtype)
        if white.dtype == torch.float32:
            raise torch.linalg.LinAlgError("not positive-definite")
        original(model, white, tol, max_iter)

    monkeypatch.setattr(em_module, "_iterate", fragile)
    GMM(3, 4).fit(clusters())
    assert set(seen) == {torch.float32, torch.float64}
    monkeypatch.setattr(em_module, "_iterate", lambda *_: (_ for _ in ()).throw(torch.linalg.LinAlgError("always")))
    with pytest.raises(ValueError, match="a component collapsed; use fewer components"):
        GMM(3, 4).fit(clusters())


@pytest.mark.parametrize("value", [None, "0"])
def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    import sklearn

    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    if value is not None:
        monkeypatch.setenv("SCIPY_ARRAY_API", value)
    GMM(3, 2).fit(clusters(200))
    assert os.environ.get("SCIPY_ARRAY_API") == value
    assert sklearn.get_config()["array_api_dispatch"] is False


def test_fitting_under_no_grad() -> None:
    with torch.no_grad():
        assert torch.isfinite(GMM(3, 2).fit(clusters(200))().log_prob(clusters(5))).all()


@pytest.mark.parametrize(
    "arguments", [{"components": 0}, {"covariance": "tied"}, {"restarts": 0}, {"reg": -1.0}, {"tol": float("nan")}, {"max_iter": 0}]
)
def test_bad_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        GMM(2, **arguments)  # type: ignore[arg-type]
