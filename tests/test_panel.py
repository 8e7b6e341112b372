"""The panel: healthy, collapsed and deterministic models, whose findings are known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import GMM, StandardNormal
from expost.diagnose.health import Panel, panel, reconstruction_gain
from oracles.test_linear_gaussian import exact_model, loadings, marginal
from toys import bits, convolutional, linear, model, pictures, same, vectors

N = 300


@pytest.fixture(scope="module")
def healthy() -> Panel:
    """The true posterior of data from the model: nothing is wrong."""
    torch.manual_seed(0)
    weight, bias = loadings()
    x = marginal(weight, bias).sample((3 * N,))
    return panel(exact_model(weight, bias), x[N:], x[:N], n=N, progress=False)


def test_a_healthy_model(healthy) -> None:
    results = healthy.results()
    assert not healthy.collapsed
    assert float(results["collapse"]) == 0
    assert [float(results[name]) for name in ("active_units", "used_units", "predicted_units", "ignored_units")] == [2, 2, 2, 0]
    assert results["mmd"].details["p"] > 0.01
    assert results["c2st"].details["p"] > 0.01
    assert float(results["marginal_kl_largest"]) < 0.02
    weight, _ = loadings()
    information = 0.5 * float(torch.logdet(torch.eye(2, dtype=torch.float64) + weight.mT @ weight / 0.3))
    assert float(results["mutual_information"]) == pytest.approx(information, abs=0.3)
    assert float(results["aggregate_kl"]) == pytest.approx(0, abs=0.2)
    assert results["dimension_codes"].value == pytest.approx(2, rel=0.15)
    assert float(results["reconstruction_gain"]) > 3
    assert healthy.marginals is not None
    assert healthy.marginals.guilty == ()


def test_everything_is_in_tables_and_plain(healthy) -> None:
    assert [t.title for t in healthy.tables()] == [
        "collapse and mismatch",
        "latent units",
        "what a linear VAE would keep",
        "marginals of q(z)",
    ]
    plain = json.loads(json.dumps(healthy.to_json(), allow_nan=False))
    assert plain["reference"] == "N(0, I)"
    assert plain["results"]["mmd"]["details"]["p"] == healthy.measured["mmd"].details["p"]
    for name, result in healthy.results().items():
        assert result.name == name
    assert "ALARM" not in str(healthy)


def ignoring(encoder: bool) -> Autoencoder:
    """An encoder that ignores x, or a decoder that ignores z."""
    d = 6
    gain, weight = torch.zeros(4, d), torch.zeros(d, 2)
    if not encoder:
        gain[:2, :2], weight = torch.eye(2), torch.zeros(d, 2)
    else:
        weight = torch.randn(d, 2, generator=torch.Generator().manual_seed(0))
    return Autoencoder(Conditional(linear(gain), heads.Diagonal()), Conditional(linear(weight), heads.Gaussian(1.0)), StandardNormal(2))


def test_an_encoder_that_ignores_x_raises_the_alarm() -> None:
    found = panel(ignoring(True), vectors(200), vectors(100, seed=1), n=100, gamma=50.0, progress=False)
    assert found.collapsed
    assert len(found.collapse) == 3, found.collapse
    assert any("none of 2 units" in reason for reason in found.collapse)
    assert any("I(n; z)" in reason for reason in found.collapse)
    assert any("as well as their own" in reason for reason in found.collapse)
    assert any("a linear VAE would collapse too" in note for note in found.notes)
    assert any("dimension_codes is left out" in note for note in found.notes), "all codes are one point"
    assert "ALARM" in str(found)
    json.dumps(found.to_json(), allow_nan=False)
    blamed = panel(ignoring(True), vectors(200), vectors(100, seed=1), n=100, gamma=0.01, progress=False)
    assert any("not γ's doing" in note for note in blamed.notes)


def test_a_decoder_that_ignores_z_raises_the_alarm_though_units_vary() -> None:
    found = panel(ignoring(False), vectors(200), vectors(100, seed=1), n=100, progress=False)
    results = found.results()
    assert float(results["active_units"]) == 2
    assert float(results["ignored_units"]) == 2
    assert float(results["reconstruction_gain"]) == 0
    assert len(found.collapse) == 1
    assert "as well as their own" in found.collapse[0]


def test_a_mismatched_aggregate_is_seen_and_its_dimension_named() -> None:
    gain = torch.zeros(4, 6)
    gain[0, 0] = gain[1, 1] = 1.0
    encoder = Conditional(linear(gain, torch.tensor([0.0, 3.0, -6.0, -6.0])), heads.Diagonal())
    m = Autoencoder(encoder, Conditional(linear(gain[:2].mT.contiguous()), heads.Gaussian(1.0)), StandardNormal(2))
    found = panel(m, torch.randn(600, 6), torch.randn(300, 6), n=300, progress=False)
    assert found.marginals is not None
    assert found.marginals.guilty == (1,)
    assert found.measured["mmd"].details["p"] < 0.01
    assert found.measured["c2st"].details["p"] < 1e-6
    density = GMM(2, 1).fit(m.latents(torch.randn(600, 6), at="sample"))
    cured = panel(m, torch.randn(600, 6), torch.randn(300, 6), n=300, density=density, progress=False)
    assert cured.measured["mmd"].details["p"] > 0.01
    assert cured.marginals is not None
    assert cured.marginals.guilty == ()


def test_deterministic_codes_without_a_prior() -> None:
    m = model(heads.Dirac(), plain=True).double()
    before, x, held = bits(m), vectors(300).double(), vectors(150, seed=1).double()
    data = x.clone()
    first = panel(m, x, held, n=150, progress=False)
    assert same(before, bits(m))
    assert torch.equal(x, data)
    assert m.prior is None
    assert first.reference == "FullGaussian"
    assert "mutual_information" not in first.results()
    assert "kl_units" not in first.results()
    assert first.results()["reconstruction_gain"].unit == "squared error"
    again = panel(m, x, held, n=150, progress=False)
    assert first.to_json() == again.to_json()


def test_images_and_loss_heads() -> None:
    found = panel(convolutional(heads.CrossEntropy()), pictures(80), pictures(40, seed=1), n=40, progress=False)
    assert found.units is not None
    assert any("not a likelihood" in note for note in found.units.notes)
    assert found.linear is not None
    assert "squared error" in found.linear.source


def test_the_gain_in_closed_form() -> None:
    """x̂ = z = x: own codes have no error; x against z′ ~ N(0, 1) costs (1 + E x²) per dimension."""
    eye = torch.eye(3)
    m = Autoencoder(Conditional(linear(eye), heads.Dirac()), Conditional(linear(eye), heads.Gaussian(1.0)), StandardNormal(3))
    x: Tensor = 2 * torch.randn(4000, 3)
    gain = reconstruction_gain(m, x)
    assert gain.error is not None
    assert gain.value == pytest.approx(3 + float(x.square().sum(1).mean()), abs=4 * gain.error)
    assert gain.details["own"] == 0
    assert reconstruction_gain(m, x, batch_size=77).value == pytest.approx(gain.value, rel=1e-6)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 20 images"):
        panel(model(), vectors(10), vectors(50))
    with pytest.raises(ValueError, match="held-out data hold NaN"):
        panel(model(), vectors(50), torch.full((50, 6), math.nan))
    with pytest.raises(ValueError, match="no prior"):
        reconstruction_gain(model(plain=True), vectors(20))
