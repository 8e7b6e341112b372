"""Foreign models: every way of returning codes and images, ranges, maps, Pythae and diffusers folders, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Beta, Independent, MultivariateNormal, Normal

from expost import GMM, heads
from expost.adapt import Interface, check, from_diffusers, from_pythae, halves, interface_of, open_source, wrap
from expost.adapt.outputs import read_code
from expost.adapt.references import module_of, pair_of, resolve
from expost.distributions import Dirac
from expost.evaluate.features.base import Wrapped as Features
from expost.evaluate.features.base import extract
from expost.runs.run import load_run

Pair = namedtuple("Pair", ["mu", "log_var"])


class Net(nn.Module):
    """A linear map of the flattened input, and what to make of its output."""

    def __init__(self, inputs: int, outputs: int, make: Any = lambda y: y) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(inputs, outputs), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.linear(x.flatten(1)))


def split(y: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = y.chunk(2, 1)
    return mean, raw


def deviation(raw: Tensor) -> Tensor:
    return (0.5 * raw).exp()


GAUSSIAN = {
    "tuple": split,
    "list": lambda y: list(split(y)),
    "dict": lambda y: {"mu": split(y)[0], "logvar": split(y)[1]},
    "pythae": lambda y: {"embedding": split(y)[0], "log_covariance": split(y)[1]},
    "named tuple": lambda y: Pair(*split(y)),
    "log sigma": lambda y: {"mean": split(y)[0], "log_sigma": 0.5 * split(y)[1]},
    "object with std": lambda y: SimpleNamespace(mean=split(y)[0], std=deviation(split(y)[1])),
    "latent_dist": lambda y: SimpleNamespace(latent_dist=SimpleNamespace(mean=split(y)[0], logvar=split(y)[1])),
    "Normal": lambda y: Normal(split(y)[0], deviation(split(y)[1])),
    "Independent": lambda y: Independent(Normal(split(y)[0], deviation(split(y)[1])), 1),
    "full": lambda y: MultivariateNormal(split(y)[0], scale_tril=torch.diag_embed(deviation(split(y)[1]))),
    "distribution in a tuple": lambda y: (Normal(split(y)[0], deviation(split(y)[1])), "hidden states"),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_every_way_to_return_a_posterior(name: str) -> None:
    x = torch.rand(30, 1, 3, 2)
    encoder = Net(6, 4, GAUSSIAN[name])
    model = wrap(encoder, Net(2, 6), x)
    mean, raw = split(encoder.linear(x.flatten(1)))
    q = model.posteriors(x)
    assert torch.allclose(q.mean, mean, atol=1e-6)
    assert torch.allclose(q.variance.sqrt(), deviation(raw), atol=1e-6)
    assert q.batch_shape == (30,)
    assert q.event_shape == (2,)
    assert model.reconstruct(x).shape == x.shape
    assert interface_of(model).prior == "normal"
    assert model.generate(3).shape == (3, 1, 3, 2)
    assert model().log_prob(x).shape == (30,)


@pytest.mark.parametrize(
    ("posterior", "to_scale"), [("mean-logvar", deviation), ("mean-logstd", torch.exp), ("mean-std", lambda raw: raw), ("mean", None)]
)
def test_a_tensor_or_a_tuple_is_what_one_says_it_is(posterior: Any, to_scale: Any) -> None:
    x = torch.rand(20, 6)
    encoder = Net(6, 4, lambda y: (y[:, :2], y[:, 2:].abs() + 0.1))
    model = wrap(encoder, Net(2, 6), x, posterior=posterior)
    mean, second = encoder(x)
    assert torch.equal(model.latents(x, at="mean"), mean)
    if to_scale is None:
        assert isinstance(model.encode(x), Dirac)
        assert model.prior is None
    else:
        assert torch.allclose(model.encode(x).stddev, to_scale(second))
        joined = wrap(Net(6, 4, lambda y: torch.cat([y[:, :2], y[:, 2:].abs() + 0.1], 1)), Net(2, 6), x, posterior=posterior)
        assert joined.encode(x).event_shape == (2,)


@pytest.mark.parametrize("make", [lambda y: y, lambda y: {"embedding": y}, lambda y: {"z": y}, lambda y: (y,)])
def test_deterministic_codes(make: Any) -> None:
    x = torch.rand(25, 6)
    model = wrap(Net(6, 2, make), Net(2, 6), x)
    assert isinstance(model.encode(x), Dirac)
    assert check(model, x).scale == 0
    with pytest.raises(ValueError, match="no prior to sample from"):
        model.generate(2)
    assert model.with_prior(GMM(2, 2).fit(model.latents(x, at="mean"))).generate(4).shape == (4, 6)


def test_a_second_part_that_looks_like_a_deviation_is_noted() -> None:
    x = torch.rand(20, 6)
    model = wrap(Net(6, 4, lambda y: (y[:, :2], y[:, 2:].abs() + 0.1)), Net(2, 6), x)
    assert any("mean-std" in note for note in check(model, x).notes)


IMAGES = {
    "tensor": lambda y: y,
    "reconstruction": lambda y: {"reconstruction": y},
    "sample": lambda y: SimpleNamespace(sample=y),
    "tuple": lambda y: (y, None),
    "Normal": lambda y: Normal(y, 1.0),
    "object with a distribution": lambda y: SimpleNamespace(reconstruction=Normal(y, 1.0)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_way_to_return_an_image(name: str) -> None:
    x, decoder = torch.rand(20, 1, 2, 3), Net(2, 6, IMAGES[name])
    model = wrap(Net(6, 2), decoder, x)
    z = torch.randn(7, 2)
    assert torch.equal(model.decode_points(z), decoder.linear(z).reshape(7, 1, 2, 3))


def test_codes_that_are_maps() -> None:
    encoder, decoder = nn.Conv2d(1, 6, 2, 2), nn.ConvTranspose2d(3, 1, 2, 2)
    x = torch.rand(20, 1, 8, 6)
    model = wrap(encoder, decoder, x, posterior="mean-logvar")
    assert interface_of(model).latent_shape == (3, 4, 3)
    mean, logvar = encoder(x).chunk(2, 1)
    assert torch.allclose(model.latents(x, at="mean"), mean.flatten(1))
    assert torch.allclose(model.encode(x).stddev, (0.5 * logvar).exp().flatten(1))
    assert torch.allclose(model.reconstruct(x), decoder(mean), atol=1e-6)
    assert model.latent().event_shape == (36,)
    assert model.encode(x.expand(2, 20, 1, 8, 6)).mean.shape == (2, 20, 36)


class Identity(nn.Module):
    """An autoencoder that is right on inputs in [low, high] only: it clamps what it sees to that range."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.one = nn.Parameter(torch.ones(()))

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1) * self.one).clamp(self.low, self.high)

    def decode(self, z: Tensor) -> Tensor:
        return torch.where(z < (self.low + self.high) / 2, self.low, self.high) * self.one


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0), (-0.5, 0.5)])
def test_ranges(bounds: tuple[float, float]) -> None:
    x = (torch.rand(40, 1, 4, 4) > 0.5).to(torch.uint8) * 255
    model = wrap(*halves(Identity(*bounds)), x, input_range=bounds)
    assert torch.allclose(model.reconstruct(x), x / 255, atol=1e-6)
    assert check(model, x).mse < 1e-10
    assert not check(model, x).notes


def test_a_wrong_range_is_named() -> None:
    x = (torch.rand(40, 1, 4, 4) > 0.5).float()
    found = check(wrap(*halves(Identity(-1.0, 1.0)), x), x)
    assert found.mse > found.baseline
    assert "a range of (-1, 1) would give" in found.notes[0]
    assert "range of (-1, 1)" in str(found)


def test_forgotten_sigmoid_is_named() -> None:
    x = (torch.rand(40, 6) > 0.5).float()

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(20.0))

        def forward(self, z: Tensor) -> Tensor:
            return self.scale * (z - 0.5)

    found = check(wrap(nn.Identity(), Logits(), x), x)
    assert "outputs='logits' would give" in found.notes[0]
    model = wrap(nn.Identity(), Logits(), x, outputs="logits")
    assert check(model, x).mse < 1e-6
    assert not check(model, x).notes


def test_binary_likelihoods_take_probabilities_and_logits() -> None:
    x, weights = (torch.rand(30, 6) > 0.5).float(), Net(2, 6)
    encoder = Net(6, 4, split)
    raw = wrap(encoder, weights, x, likelihood="bernoulli")
    squashed = wrap(encoder, nn.Sequential(weights, nn.Sigmoid()), x, likelihood="bernoulli")
    dist = wrap(encoder, Net(2, 6, lambda y: Bernoulli(logits=y)), x, likelihood="bernoulli")
    assert (interface_of(raw).outputs, interface_of(squashed).outputs, interface_of(dist).outputs) == ("logits", "mean", "mean")
    z = torch.randn(9, 2)
    for model in (raw, squashed):
        expected = Independent(Bernoulli(logits=weights(z)), 1).log_prob(x[:9])
        assert torch.allclose(model.decode(z).log_prob(x[:9]), expected, atol=1e-5)
    grey = wrap(encoder, nn.Sequential(weights, nn.Sigmoid()), torch.rand(30, 6), likelihood="cross-entropy")
    assert torch.allclose(grey.decode(z).mean, torch.sigmoid(weights(z)), atol=1e-6)
    with pytest.raises(ValueError, match="choose cross-entropy"):
        wrap(encoder, weights, torch.rand(30, 6), likelihood="bernoulli")


def test_a_flat_encoder_of_images() -> None:
    x = torch.rand(20, 1, 4, 3)
    with pytest.raises(ValueError, match=r"fails on data of shape \(1, 4, 3\).*shape or range it was trained on"):
        wrap(nn.Linear(12, 2), nn.Linear(2, 12), x)
    model = wrap(nn.Linear(12, 2), nn.Linear(2, 12), x, input_shape=(12,))
    assert model.reconstruct(x).shape == x.shape


def test_optimal_gamma_is_the_expected_error() -> None:
    r"""E ‖x - D(μ + σ ε)‖² = ‖x - D(μ)‖² + Σ_j σ_j² ‖d_j‖² for a linear decoder."""
    x = torch.rand(4000, 6)
    encoder, decoder = Net(6, 4, split), Net(2, 6)
    model = wrap(encoder, decoder, x, n=4000)
    mean, raw = split(encoder.linear(x))
    miss = (x - decoder(mean)).square().sum(1) + (raw.exp() * decoder.linear.weight.square().sum(0)).sum(1)
    gamma = float(model.decoder.head.variance)
    assert gamma == pytest.approx(float(miss.detach().mean()) / 6, rel=0.02)
    assert check(model, x).gamma == pytest.approx(gamma)
    assert float(wrap(encoder, decoder, x, gamma=0.25).decoder.head.variance) == pytest.approx(0.25)
    again = wrap(encoder, decoder, x, n=4000)
    assert torch.equal(again.decoder.head.log_scale, model.decoder.head.log_scale)


def test_a_head_of_ones_own() -> None:
    x = torch.rand(20, 6)
    model = wrap(Net(6, 4, split), Net(2, 12), x, likelihood=heads.Gaussian("pixel"))
    assert model.decode(torch.zeros(3, 2)).mean.shape == (3, 6)
    with pytest.raises(ValueError, match="head of its own cannot be saved"):
        interface_of(model).to_json()


def test_other_precisions_and_gradients() -> None:
    x = torch.rand(20, 6)
    model = wrap(Net(6, 4, split).double(), Net(2, 6).double(), x)
    assert model.reconstruct(x).dtype == torch.float64  # a model of doubles answers in doubles
    x.requires_grad_()
    model.decode(model.encode(x).rsample()).log_prob(x.detach()).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.abs().sum() > 0)


def test_dropout_and_batch_statistics_do_not_matter() -> None:
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = wrap(encoder.train(), Net(2, 6), torch.rand(20, 6))
    x = torch.rand(30, 6)
    assert torch.allclose(model.latents(x, at="mean", batch_size=1), model.latents(x, at="mean"), atol=1e-6)


def test_foreign_modules_get_copies_and_their_answers_are_copied() -> None:
    """A module may overwrite what it was given, and at the next call what it returned."""
    buffer = torch.zeros(100, 2)

    def spoil(x: Tensor) -> Tensor:
        return x.sub_(0.5).flatten(1)

    class Spoils(Net):
        def forward(self, x: Tensor) -> Tensor:
            out = buffer[: len(x)]
            out.copy_(super().forward(spoil(x)).detach())
            return out

    encoder, decoder = Spoils(6, 2), nn.Sequential(nn.ReLU(inplace=True), Net(2, 6))
    x = torch.rand(30, 1, 3, 2)
    kept = x.clone()
    model = wrap(encoder, decoder, x)
    codes = model.latents(x, at="mean", batch_size=7)
    assert torch.allclose(codes, encoder.linear(kept.flatten(1) - 0.5), atol=1e-6)
    before = codes.clone()
    assert torch.allclose(model.decode_points(codes), decoder[1].linear(codes.relu()).reshape(-1, 1, 3, 2), atol=1e-6)
    check(model, x)
    features = Features(lambda y: spoil(y)[:, :1], name="spoils", dim=1, version="1")
    assert torch.allclose(extract(features, x), kept.flatten(1)[:, :1] - 0.5)
    assert torch.equal(x, kept)
    assert torch.equal(codes, before)


def test_only_flat_images_are_reshaped() -> None:
    for make in (lambda y: y, lambda y: y.reshape(-1, 1, 8, 16)):
        encoder, decoder = Net(128, 2), Net(2, 128, make)
        model = wrap(encoder, decoder, WIDE)
        assert torch.equal(model.decode_points(torch.ones(3, 2)).flatten(1), decoder.linear(torch.ones(3, 2)))
    squeezed = wrap(nn.Sequential(nn.Conv1d(8, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 2)), Net(2, 128), WIDE, input_shape=(8, 16))
    assert squeezed.reconstruct(WIDE).shape == WIDE.shape


class Sampling(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + torch.randn_like(y)


class Second:
    """What is right when it is first asked, for the probe and the trial, and ``other`` times it afterwards."""

    def __init__(self, other: float) -> None:
        self.other, self.calls = other, 0

    def __call__(self, y: Tensor) -> Tensor:
        self.calls += 1
        return y if self.calls <= 2 else y * self.other


X, WIDE = torch.rand(12, 6), torch.rand(12, 1, 8, 16)
REFUSED: dict[str, tuple[Any, str]] = {
    "sampling encoder": (lambda: wrap(Sampling(6, 2), Net(2, 6), X), "so it samples them"),
    "three tensors": (lambda: wrap(Net(6, 2, lambda y: (y, y, y)), Net(2, 6), X), "3 tensors"),
    "nothing known": (lambda: wrap(Net(6, 2, lambda y: {"foo": y}), Net(2, 6), X), "a dict with foo"),
    "a string": (lambda: wrap(Net(6, 2, lambda y: "codes"), Net(2, 6), X), "a str"),
    "odd outputs": (lambda: wrap(Net(6, 3), Net(2, 6), X, posterior="mean-logvar"), "does not split"),
    "other scale": (lambda: wrap(Net(6, 2, lambda y: {"mu": y, "std": y}), Net(2, 6), X, posterior="mean-logvar"), 'posterior="auto"'),
    "negative deviations": (lambda: wrap(Net(6, 2, lambda y: {"mu": y, "std": -y.abs()}), Net(2, 6), X), "are they logarithms"),
    "scales of another shape": (lambda: wrap(Net(6, 2, lambda y: (y, y[:, :1].repeat(1, 5))), Net(2, 6), X), "one scale each"),
    "another family": (lambda: wrap(Net(6, 2, lambda y: Beta(y.exp(), y.exp())), Net(2, 6), X), "posteriors of type Beta"),
    "one code for all": (lambda: wrap(Net(6, 2, lambda y: y[:1]), Net(2, 6), X), "one code per example"),
    "decoder of another size": (lambda: wrap(Net(6, 2), Net(3, 6), X), r"the decoder fails on codes of shape \(2,\)"),
    "images of another size": (lambda: wrap(Net(6, 2), Net(2, 7), X), r"makes \(7,\) for data of shape \(6,\)"),
    "no image": (lambda: wrap(Net(6, 2), Net(2, 6, lambda y: {"foo": y}), X), "the decoder returns a dict with foo"),
    "NaN": (lambda: wrap(Net(6, 2, lambda y: y / 0 * 0), Net(2, 6), X), "codes of the encoder hold NaN"),
    "no parameters": (lambda: wrap(Net(6, 6), nn.Identity(), X), "no parameters"),
    "no data": (lambda: wrap(Net(6, 2), Net(2, 6), X[:0]), "no data"),
    "unknown posterior": (lambda: wrap(Net(6, 2), Net(2, 6), X, posterior="gauss"), "choose auto, mean"),  # type: ignore[arg-type]
    "unknown likelihood": (lambda: wrap(Net(6, 2), Net(2, 6), X, likelihood="laplace"), "choose gaussian"),  # type: ignore[arg-type]
    "unknown prior": (lambda: wrap(Net(6, 2), Net(2, 6), X, prior="cauchy"), "choose auto, normal"),  # type: ignore[arg-type]
    "empty range": (lambda: wrap(Net(6, 2), Net(2, 6), X, input_range=(1, 1)), "is empty"),
    "negative gamma": (lambda: wrap(Net(6, 2), Net(2, 6), X, gamma=-1), "positive variance"),
    "channels last": (
        lambda: wrap(Net(24, 2), Net(2, 24, lambda y: y.reshape(-1, 4, 2, 3)), torch.rand(5, 3, 4, 2)),
        "channels last",
    ),
    **{
        f"images laid out as {shape}": (
            lambda shape=shape: wrap(Net(128, 2), Net(2, 128, lambda y: y.reshape(-1, *shape)), WIDE),
            "makes .*permute its output to",
        )
        for shape in ((1, 16, 8), (2, 8, 8), (16, 8), (8, 1, 16), (1, 128), (1, 1, 8, 16))
    },
    "inputs that mix values up": (lambda: wrap(Net(128, 2), Net(2, 128), WIDE, input_shape=(1, 16, 8)), "without mixing up their values"),
    "one image of many codes": (lambda: wrap(Net(6, 2), Net(2, 6, lambda y: y[:1]), X), r"makes \(1, 6\) of 12 codes"),
    "images joined": (lambda: wrap(Net(6, 2), Net(2, 6, lambda y: y.reshape(6, 12)), X), r"makes \(6, 12\) of 12 codes"),
    "no triangular matrices": (lambda: wrap(Net(6, 4, split), Net(2, 6), X, posterior="full"), "one of 2 x 2 for each"),
    "infinite deviations": (
        lambda: wrap(Net(6, 4, lambda y: (y[:, :2], y[:, 2:] + 200)), Net(2, 6), X),
        "standard deviations .* hold NaN or infinity",
    ),
    "NaN deviations": (
        lambda: wrap(Net(6, 4, lambda y: (y[:, :2], y[:, 2:] * math.nan)), Net(2, 6), X),
        "standard deviations .* hold NaN or infinity",
    ),
    "complex codes": (lambda: wrap(Net(6, 2, lambda y: y.to(torch.complex64)), Net(2, 6), X), "encoder returns complex numbers"),
    "complex images": (lambda: wrap(Net(6, 2), Net(2, 6, lambda y: y.to(torch.complex64)), X), "decoder returns complex numbers"),
    "NaN images": (lambda: wrap(Net(6, 2), Net(2, 6, lambda y: y * math.nan), X), "images of the decoder hold NaN"),
    "NaN away from the means": (lambda: wrap(Net(6, 4, split), Net(2, 6, Second(math.nan)), X), "gives no variance gamma"),
    "NaN in later data": (
        lambda: check(wrap(Net(6, 2, lambda y: y if len(y) == 12 else y * math.nan), Net(2, 6), X), X[:5]),
        "codes of the encoder hold NaN",
    ),
    "NaN in later images": (
        lambda: check(wrap(Net(6, 2), Net(2, 6, lambda y: y if len(y) == 12 else y * math.nan), X), X[:5]),
        "reconstructions hold NaN",
    ),
    "an end of the program": (lambda: wrap(Net(6, 2, lambda y: sys.exit(0)), Net(2, 6), X), r"the encoder fails on .*\(SystemExit: 0\)"),
    "neither half": (lambda: halves(nn.Linear(2, 2)), "neither methods encode and decode"),
    "an own model": (lambda: interface_of(_own()), "expost's own"),
    "other data": (lambda: check(wrap(Net(6, 2), Net(2, 6), X), X[:0]), "no data"),
}


def _own() -> Any:
    from expost import Autoencoder, Conditional

    return Autoencoder(Conditional(nn.Linear(2, 2), heads.Dirac()), Conditional(nn.Linear(2, 2), heads.Gaussian()))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str) -> None:
    call, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_constant_encoder_is_noted() -> None:
    x = torch.rand(20, 6)
    model = wrap(Net(6, 2, lambda y: 0 * y + 1), Net(2, 6), x)
    assert any("all codes are the same" in note for note in check(model, x).notes)


def test_an_interface_survives_json() -> None:
    i = Interface((1, 8, 8), (3, 2, 2), "mean-std", "bernoulli", "logits", 0.5, (-1.0, 1.0), (64,), "normal", ("a note",))
    assert Interface.from_json(json.loads(json.dumps(i.to_json()))) == i
    with pytest.raises(ValueError, match="does not describe a wrapped model"):
        Interface.from_json({"foo": 1})


def test_an_explicit_pair_of_more_tensors() -> None:
    y = torch.zeros(2, 3)
    assert read_code((y, y + 1, y), "mean-logvar")[0] == "mean-logvar"


# -- Pythae -----------------------------------------------------------------------------------------------------------------------------------


def pythae_folder(path: Path, name: str = "VAEConfig", d: int = 3, shape: tuple[int, ...] = (1, 8, 8), **config: Any) -> dict[str, Tensor]:
    """A folder as Pythae 0.1.2 writes it, with random weights; returns their state."""
    dims = math.prod(shape)
    layers = {"encoder.layers.0.0": nn.Linear(dims, 512), "encoder.embedding": nn.Linear(512, d)}
    if not name.startswith(("AE", "RAE", "WAE")):
        layers["encoder.log_var"] = nn.Linear(512, d)
    layers |= {"decoder.layers.0.0": nn.Linear(d, 512), "decoder.layers.1.0": nn.Linear(512, dims)}
    if name == "VAMPConfig":
        layers["pseudo_inputs.0"] = nn.Linear(config["number_components"], dims)
    state = {f"{key}.{k}": v.detach() for key, layer in layers.items() for k, v in layer.state_dict().items()}
    path.mkdir(parents=True, exist_ok=True)
    written = {
        "name": name,
        "input_dim": list(shape),
        "latent_dim": d,
        "uses_default_encoder": True,
        "uses_default_decoder": True,
        "reconstruction_loss": "mse",
    }
    (path / "model_config.json").write_text(json.dumps({**written, **config}))
    (path / "environment.json").write_text('{"name": "EnvironmentConfig", "python_version": "3.11"}')
    torch.save({"model_state_dict": state}, path / "model.pt")
    return state


def by_hand(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(μ, reconstruction) of Pythae's default networks, from their definition."""

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    h = torch.relu(linear(x.flatten(1), "encoder.layers.0.0"))
    mean = linear(h, "encoder.embedding")
    h = torch.relu(linear(mean, "decoder.layers.0.0"))
    return mean, torch.sigmoid(linear(h, "decoder.layers.1.0")).reshape(x.shape)


@pytest.mark.parametrize(
    ("name", "gamma", "prior"),
    [("VAEConfig", 1.0, "normal"), ("AEConfig", 0.5, "none"), ("RAE_L2_Config", 0.5, "none"), ("WAE_MMD_Config", 0.5, "normal")],
)
def test_pythae_networks(tmp_path: Path, name: str, gamma: float, prior: str) -> None:
    state, x = pythae_folder(tmp_path, name), torch.rand(10, 1, 8, 8)
    model = from_pythae(tmp_path)
    mean, reconstruction = by_hand(state, x)
    assert torch.allclose(model.latents(x, at="mean"), mean, atol=1e-6)
    assert torch.allclose(model.reconstruct(x), reconstruction, atol=1e-6)
    assert float(model.decoder.head.variance) == pytest.approx(gamma)
    assert interface_of(model).prior == prior
    assert isinstance(model.encode(x), Dirac) == (name != "VAEConfig")


def test_pythae_cross_entropy_and_final_model(tmp_path: Path) -> None:
    state, x = pythae_folder(tmp_path / "final_model", reconstruction_loss="bce"), torch.rand(10, 1, 8, 8)
    model = from_pythae(tmp_path, x=x)
    p = by_hand(state, x)[1]
    assert interface_of(model).likelihood == "cross-entropy"
    expected = (x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
    assert torch.allclose(model.decode(model.latents(x, at="mean")).log_prob(x), expected, atol=1e-4)
    gaussian = from_pythae(tmp_path, x=x, likelihood="gaussian", gamma="optimal")
    assert 0 < float(gaussian.decoder.head.variance) < 1


def test_pythae_vamp_prior(tmp_path: Path) -> None:
    """Its prior is the mixture of posteriors at clamped columns of the pseudo-input layer."""
    state = pythae_folder(tmp_path, "VAMPConfig", number_components=4)
    model = from_pythae(tmp_path)
    u = (torch.eye(4) @ state["pseudo_inputs.0.weight"].T + state["pseudo_inputs.0.bias"]).clamp(0, 1)
    q = model.encode(u.reshape(4, 1, 8, 8))
    z = torch.randn(5, 1, 3)
    assert torch.allclose(model.latent().log_prob(z[:, 0]), torch.logsumexp(q.log_prob(z), 1) - math.log(4), atol=1e-5)


def test_pythae_data_of_another_layout(tmp_path: Path) -> None:
    state, x = pythae_folder(tmp_path, shape=(64,)), torch.rand(10, 1, 8, 8)
    assert torch.allclose(from_pythae(tmp_path, x=x).reconstruct(x), by_hand(state, x)[1], atol=1e-6)
    with pytest.raises(ValueError, match=r"for data of shape \(64,\), not \(1, 9, 9\)"):
        from_pythae(tmp_path, x=torch.rand(10, 1, 9, 9))


def test_pythae_own_networks_are_never_unpickled(tmp_path: Path) -> None:
    pythae_folder(tmp_path, uses_default_encoder=False)
    (tmp_path / "encoder.pkl").write_bytes(b"not even a pickle")
    with pytest.raises(ValueError, match="stores its encoder as pickled code, which is never run here"):
        from_pythae(tmp_path)
    from expost.adapt.pythae import build_pythae

    config = json.loads((tmp_path / "model_config.json").read_text())
    encoder, _ = build_pythae(config)
    assert from_pythae(tmp_path, encoder=encoder).encoder.net.module is encoder
    with pytest.raises(ValueError, match="mnist-conv are for images of 1x28x28"):
        from_pythae(tmp_path, networks="mnist-conv")


def test_pythae_benchmark_networks(tmp_path: Path) -> None:
    """The convolutional networks of its MNIST benchmark, stated again as plain torch: 28 -> 14 -> 7 -> 3 -> 1, back by way of 4 and 7."""
    from expost.adapt.pythae import build_pythae

    config = {"name": "VAEConfig", "input_dim": [1, 28, 28], "latent_dim": 2}
    encoder, decoder = build_pythae(config, "mnist-conv")
    named = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    assert named["layers.3.0.weight"] == (1024, 512, 4, 4)
    assert named["layers.0.1.running_var"] == (128,)
    assert named["log_var.weight"] == (2, 1024)
    shapes = {k: tuple(v.shape) for k, v in decoder.state_dict().items() if k.endswith("weight")}
    assert shapes["layers.0.weight"] == (16384, 2)
    assert shapes["layers.3.0.weight"] == (256, 1, 3, 3)
    model = wrap(encoder, decoder, torch.rand(2, 1, 28, 28))
    assert model.reconstruct(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_trapped_pythae_file_is_not_run(tmp_path: Path) -> None:
    pythae_folder(tmp_path)
    torch.save({"model_state_dict": Trap(tmp_path / "sprung")}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds more than weights and is not read for safety"):
        from_pythae(tmp_path)
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match="not read for safety"):
        from_pythae(tmp_path)
    assert not (tmp_path / "sprung").exists()


def _spoil(folder: Path, what: str) -> None:
    config = json.loads((folder / "model_config.json").read_text())
    if what == "sphere":
        config["name"] = "SVAEConfig"
    elif what == "flow":
        config["name"] = "VAE_IAF_Config"
    elif what == "unknown":
        config["name"] = "NewConfig"
    elif what == "size":
        config["latent_dim"] = 4
    elif what == "nameless":
        del config["name"]
    elif what == "no weights":
        (folder / "model.pt").unlink()
    elif what == "truncated":
        (folder / "model.pt").write_bytes((folder / "model.pt").read_bytes()[:100])
    elif what == "foreign weights":
        torch.save({"weights": torch.zeros(2)}, folder / "model.pt")
    (folder / "model_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("sphere", "latent space is curved"),
        ("flow", "normalising flow"),
        ("unknown", "not known"),
        ("size", "does not fit this model"),
        ("nameless", "does not describe a Pythae model"),
        ("no weights", "are missing"),
        ("truncated", "damaged"),
        ("foreign weights", "no model_state_dict"),
    ],
)
def test_spoilt_pythae_folders(tmp_path: Path, what: str, sentence: str) -> None:
    pythae_folder(tmp_path)
    _spoil(tmp_path, what)
    with pytest.raises(ValueError, match=sentence):
        from_pythae(tmp_path)


# -- diffusers --------------------------------------------------------------------------------------------------------------------------------

KL: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "latent_channels": 3,
    "norm_num_groups": 4,
}


@pytest.mark.parametrize("extra", [{}, {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1}], ids=["sd", "flux"])
def test_diffusers_gives_the_same_codes_and_images(tmp_path: Path, extra: dict[str, Any]) -> None:
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL(**KL, **extra).eval()
    vae.save_pretrained(tmp_path)
    x = torch.rand(6, 1, 8, 8)
    model = from_diffusers(tmp_path, x)
    with torch.no_grad():
        q = vae.encode(2 * x - 1).latent_dist
        image = (vae.decode(q.mean).sample + 1) / 2
    posterior = model.posteriors(x)
    assert torch.allclose(posterior.mean, q.mean.flatten(1), atol=1e-6)
    assert torch.allclose(posterior.stddev, q.std.flatten(1), atol=1e-6)
    assert torch.allclose(model.reconstruct(x), image, atol=1e-5)
    assert interface_of(model).latent_shape == (3, 4, 4)
    assert "0.18215" in interface_of(model).notes[0]
    assert ("z - 0.1" in interface_of(model).notes[0]) == bool(extra)


def test_diffusers_configuration_pipeline_and_mistakes(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    x = torch.rand(6, 1, 8, 8)
    first, second, third = (from_diffusers(KL, x, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.reconstruct(x), second.reconstruct(x))
    assert not torch.equal(first.reconstruct(x), third.reconstruct(x))
    diffusers.AutoencoderKL(**KL).save_pretrained(tmp_path / "vae")
    assert from_diffusers(tmp_path, x).reconstruct(x).shape == x.shape
    with pytest.raises(ValueError, match="for images with 1 channels"):
        from_diffusers(tmp_path, torch.rand(6, 3, 8, 8))
    with pytest.raises(ValueError, match="pad or choose the data"):
        from_diffusers(tmp_path, torch.rand(6, 1, 7, 7))
    with pytest.raises(ValueError, match="cannot build an AutoencoderKL"):
        from_diffusers({**KL, "colour": "red"}, x)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="save_pretrained"):
        from_diffusers(tmp_path, x)


def test_diffusers_of_another_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(ValueError, match="describes VQModel, not an AutoencoderKL"):
        from_diffusers(tmp_path, torch.rand(6, 1, 8, 8))


def test_diffusers_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install \"expost\[diffusers\]\""):
        from_diffusers(KL, torch.rand(6, 1, 8, 8))


# -- references -------------------------------------------------------------------------------------------------------------------------------


def test_references() -> None:
    assert resolve("torch.nn:Linear") is nn.Linear
    assert isinstance(module_of("torch.nn:Identity"), nn.Identity)
    for reference, sentence in {
        "torch.nn": "package.module:function",
        "os.path:../x": "package.module:function",
        "nowhere_at_all:make": "cannot be imported",
        "torch.nn:Nothing": 'has no "Nothing"',
    }.items():
        with pytest.raises(ValueError, match=sentence):
            resolve(reference)
    with pytest.raises(ValueError, match="returns str"):
        pair_of("platform:python_version")
    with pytest.raises(ValueError, match="returns str"):
        module_of("platform:python_version")
    with pytest.raises(ValueError, match='Linear needs "in_features"'):
        pair_of("torch.nn:Linear")


def test_a_saved_vamp_folder_is_the_same_model(tmp_path: Path) -> None:
    from expost import data
    from expost.runs.wrapped import save_wrapped

    pythae_folder(tmp_path / "p", "VAMPConfig", number_components=4)
    dataset = data.load("digits")
    model, origin = open_source(str(tmp_path / "p"), dataset.train.x, "pythae", {})
    save_wrapped(tmp_path / "run", model, origin, dataset, source="digits")
    run = load_run(tmp_path / "run", device="cpu")
    z = torch.randn(5, 3)
    assert torch.equal(run.model.latent().log_prob(z), model.latent().log_prob(z))
    assert run.experiment.densities == ("prior", "gmm:10")
    with pytest.raises(ValueError, match="already holds a run of wrapped/pythae"):
        save_wrapped(tmp_path / "run", model, origin, dataset, source="digits")
