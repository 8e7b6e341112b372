"""Models saved by Pythae (Chadebec, Vincent, Allassonniere 2022), without Pythae and without unpickling anything but tensors.

A Pythae folder holds ``model_config.json``, ``environment.json``, the weights ``model.pt``, and, where the user brought networks of their
own, ``encoder.pkl`` / ``decoder.pkl``: pickled code, which is never read here. The default networks are rebuilt from the configuration:

    encoder   x ── Linear(D, 512) ── ReLU ──► Linear(512, d): μ   [Linear(512, d): log σ²]
    decoder   z ── Linear(d, 512) ── ReLU ── Linear(512, D) ── Sigmoid ──► x̂

and so are, when asked for by name (``mnist-conv``), the convolutional networks of Pythae's MNIST benchmark. Any other network is given as
a module whose parameters have the names that ``model.pt`` has.

Reconstruction losses as likelihoods: ``mse`` is ½‖x - x̂‖², a Gaussian with γ = 1 (γ = ½ in the AE family, whose loss has no ½); ``bce`` is
the cross-entropy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from expost.adapt.interface import Interface, Likelihood, Shape, fits
from expost.adapt.modules import set_gamma, try_out
from expost.autoencoder import Autoencoder
from expost.density import VampPrior
from expost.seeds import some
from expost.system.files import read_json
from expost.system.schema import Meta, convert, printable
from expost.train.folder import bounded, load_weights

__all__ = ["KINDS", "NETWORKS", "PythaeConfig", "build_pythae", "from_pythae", "read_config"]

Networks = Literal["mlp", "mnist-conv"]
NETWORKS: tuple[Networks, ...] = ("mlp", "mnist-conv")


class PythaeConfig(TypedDict):
    """What is read of model_config.json; the rest of it is passed over."""

    name: Annotated[str, Meta(max_length=100)]
    latent_dim: Annotated[int, Meta(ge=1, le=2**20)]
    input_dim: NotRequired[Shape | None]
    reconstruction_loss: NotRequired[str | None]
    deterministic_posterior: NotRequired[bool | None]
    uses_default_encoder: NotRequired[bool | None]
    uses_default_decoder: NotRequired[bool | None]
    number_components: NotRequired[Annotated[int, Meta(ge=1, le=2**20)]]


def _components(config: PythaeConfig) -> int:
    return config.get("number_components", 50)  # as in Pythae


@dataclass(frozen=True)
class Kind:
    """What a model class of Pythae means: its posterior, its prior, and γ under ``mse`` (None: its loss is no likelihood)."""

    posterior: Literal["mean", "mean-logvar"] = "mean-logvar"
    prior: Literal["normal", "none", "vamp"] = "normal"
    gamma: float | None = 1.0
    note: str = ""


_GAUSSIAN = Kind()
_PLAIN = Kind("mean", "none", 0.5)
#: By the name in model_config.json.
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("VAEConfig", "BetaVAEConfig", "BetaTCVAEConfig", "DisentangledBetaVAEConfig", "FactorVAEConfig"), _GAUSSIAN),
    **dict.fromkeys(("INFOVAE_MMD_Config", "IWAEConfig", "MIWAEConfig", "PIWAEConfig", "CIWAEConfig", "Adversarial_AE_Config"), _GAUSSIAN),
    "MSSSIM_VAEConfig": Kind(gamma=None, note="its multi-scale SSIM loss is no likelihood: a Gaussian stands in for it"),
    "VAEGANConfig": Kind(gamma=None, note="its loss compares features of a discriminator: a Gaussian on pixels stands in for it"),
    "VAMPConfig": Kind(prior="vamp"),
    **dict.fromkeys(("AEConfig", "RAE_L2_Config", "RAE_GP_Config"), _PLAIN),
    "WAE_MMD_Config": Kind("mean", "normal", 0.5),
}
_REFUSED = {
    **dict.fromkeys(("HVAEConfig", "RHVAEConfig"), "its codes move on from q(z | x) by Hamiltonian dynamics"),
    **dict.fromkeys(("VAE_IAF_Config", "VAE_LinNF_Config"), "its posterior is a normalising flow, not a Gaussian"),
    **dict.fromkeys(("SVAEConfig", "PoincareVAEConfig"), "its latent space is curved"),
    "VQVAEConfig": "its codes are discrete",
}


class Encoder(nn.Module):
    """Layers, then linear maps to μ and, if ``stochastic``, to log σ²; parameters are named as Pythae names them."""

    def __init__(self, layers: nn.ModuleList, width: int, d: int, stochastic: bool, flat: bool) -> None:
        super().__init__()
        self.layers, self.flat = layers, flat
        self.embedding = nn.Linear(width, d)
        self.log_var = nn.Linear(width, d) if stochastic else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = x.flatten(1) if self.flat else x
        for layer in self.layers:
            h = layer(h)
        h = h.flatten(1)
        return self.embedding(h) if self.log_var is None else (self.embedding(h), self.log_var(h))


class Decoder(nn.Module):
    """Layers, the first of which is followed by a reshape to maps if ``maps`` is given."""

    def __init__(self, layers: nn.ModuleList, shape: tuple[int, ...], maps: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.layers, self.shape, self.maps = layers, shape, maps

    def forward(self, z: Tensor) -> Tensor:
        h = self.layers[0](z)
        if self.maps is not None:
            h = h.reshape(len(z), *self.maps)
        for layer in self.layers[1:]:
            h = layer(h)
        return h.reshape(len(z), *self.shape)


def _mlp(shape: tuple[int, ...], d: int, stochastic: bool) -> tuple[nn.Module, nn.Module]:
    dims = math.prod(shape)
    first = nn.ModuleList([nn.Sequential(nn.Linear(dims, 512), nn.ReLU())])
    layers = nn.ModuleList([nn.Sequential(nn.Linear(d, 512), nn.ReLU()), nn.Sequential(nn.Linear(512, dims), nn.Sigmoid())])
    return Encoder(first, 512, d, stochastic, flat=True), Decoder(layers, shape)


def _mnist_conv(shape: tuple[int, ...], d: int, stochastic: bool) -> tuple[nn.Module, nn.Module]:
    if shape != (1, 28, 28):
        raise ValueError(f"the networks mnist-conv are for images of 1x28x28, and this model is for {shape}: pass its own modules")
    widths = (1, 128, 256, 512, 1024)
    down = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 4, 2, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths))
    up = nn.ModuleList(
        [
            nn.Linear(d, 1024 * 4 * 4),
            nn.Sequential(nn.ConvTranspose2d(1024, 512, 3, 2, padding=1), nn.BatchNorm2d(512), nn.ReLU()),
            nn.Sequential(nn.ConvTranspose2d(512, 256, 3, 2, padding=1, output_padding=1), nn.BatchNorm2d(256), nn.ReLU()),
            nn.Sequential(nn.ConvTranspose2d(256, 1, 3, 2, padding=1, output_padding=1), nn.Sigmoid()),
        ]
    )
    return Encoder(down, 1024, d, stochastic, flat=False), Decoder(up, shape, (1024, 4, 4))


_BUILDERS: dict[str, Callable[[tuple[int, ...], int, bool], tuple[nn.Module, nn.Module]]] = {"mlp": _mlp, "mnist-conv": _mnist_conv}


def read_config(folder: str | Path) -> tuple[Path, PythaeConfig]:
    """The folder that holds the model (``final_model`` inside a training's folder) and its configuration."""
    folder = Path(folder)
    if not (folder / "model_config.json").is_file() and (folder / "final_model" / "model_config.json").is_file():
        folder = folder / "final_model"
    file = folder / "model_config.json"
    return folder, convert(read_json(file, "the configuration of a Pythae model"), PythaeConfig, f"{file} does not describe a Pythae model")


def _kind(config: PythaeConfig) -> Kind:
    name = config["name"]
    if name in _REFUSED:
        raise ValueError(
            f"a Pythae {name.removesuffix('Config').strip('_')} cannot be wrapped, because {_REFUSED[name]}: wrap a VAE, AE, RAE or WAE"
        )
    if name not in KINDS:
        raise ValueError(f'the Pythae model "{name}" is not known: wrap its encoder and decoder as modules')
    kind = KINDS[name]
    return dataclasses.replace(kind, posterior="mean") if config.get("deterministic_posterior") else kind


def _state(folder: Path) -> dict[str, Tensor]:
    """The weights in model.pt. Nothing but tensors is loaded; a file that holds more is refused by torch."""
    file = folder / "model.pt"
    if not file.is_file():
        raise ValueError(f"{file} does not exist: the weights of a Pythae model are missing, check the folder")
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} is damaged, or holds more than weights and is not read for safety ({type(error).__name__})") from None
    state = saved.get("model_state_dict") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{file} holds no model_state_dict: was it written by Pythae?")
    return state


def build_pythae(
    config: PythaeConfig,
    networks: str = "mlp",
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> tuple[nn.Module, nn.Module]:
    """The untrained encoder and decoder of a configuration; those given are passed through."""
    _kind(config)
    if encoder is not None and decoder is not None:
        return encoder, decoder
    if networks not in _BUILDERS:
        raise ValueError(f'there are no networks "{networks}" for Pythae models: choose {" or ".join(NETWORKS)}, or pass modules')
    shape = tuple(config.get("input_dim") or ())
    if not shape:
        raise ValueError("the Pythae configuration names no input_dim, so its networks cannot be rebuilt: pass encoder and decoder")
    stochastic = KINDS[config["name"]].posterior != "mean"  # of the network; its log σ² may go unused
    built = _BUILDERS[networks](shape, config["latent_dim"], stochastic)
    return encoder or built[0], decoder or built[1]


def from_pythae(
    folder: str | Path,
    *,
    x: Tensor | None = None,
    networks: Networks | None = None,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    likelihood: Likelihood | Literal["trained"] = "trained",
    gamma: float | Literal["trained", "optimal"] = "trained",
    input_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Autoencoder:
    """The autoencoder in a folder that Pythae wrote, with its trained weights.

    Args:
        folder: with ``model_config.json`` and ``model.pt``, or with ``final_model/`` in it.
        x: some data (m, *event), to try the model on; needed for ``gamma="optimal"``.
        networks: ``mlp``, Pythae's default, or ``mnist-conv``; must be given if the folder holds pickled networks.
        encoder, decoder: untrained modules of the model's own architecture, instead.
        likelihood, gamma: what stands for the reconstruction loss; ``trained``: what the loss says.
        input_range: what the stored 0 and 1 were in training; the default networks end in a sigmoid, so it is (0, 1) for them.

    Raises:
        ValueError: if a file is missing, damaged or unsafe; if the model is of a class that is no Gaussian or deterministic autoencoder; if its
            networks are its own and none are given; if the weights do not fit.
    """
    folder, config = read_config(folder)
    kind = _kind(config)
    for name, given in (("encoder", encoder), ("decoder", decoder)):
        custom = (folder / f"{name}.pkl").is_file() or config.get(f"uses_default_{name}") is False
        if custom and given is None and networks is None:
            raise ValueError(
                f"{folder} stores its {name} as pickled code, which is never run here: give it as a module "
                f"(--{name} mypackage.mymodule:{name.capitalize()}), or say --networks mnist-conv if it is that of Pythae's MNIST benchmark"
            )
    state = _state(folder)
    with bounded(folder / "model_config.json", folder / "model.pt"):
        halves = build_pythae(config, networks or "mlp", encoder, decoder)
    for name, module in zip(("encoder", "decoder"), halves, strict=True):
        load_weights(
            module, {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}, str(folder / "model.pt")
        )
    left = {k.partition(".")[0] for k in state} - {"encoder", "decoder", "pseudo_inputs"}
    interface = _interface(config, kind, tuple(sorted(left)), likelihood, gamma, input_range, x)
    with bounded(folder / "model_config.json", folder / "model.pt"):
        model = assemble_pythae(interface, config, *halves)
    if isinstance(model.prior, VampPrior):
        wanted = {"weight": (math.prod(interface.data_shape), _components(config)), "bias": (math.prod(interface.data_shape),)}
        for name, size in wanted.items():
            found = state.get(f"pseudo_inputs.0.{name}")
            if found is None or tuple(found.shape) != size:
                raise ValueError(
                    f'{folder / "model.pt"} does not fit this model: "pseudo_inputs.0.{name}" is {"missing" if found is None else tuple(found.shape)}, '
                    f"not {size}"
                )
        pseudo = (state["pseudo_inputs.0.weight"].T + state["pseudo_inputs.0.bias"]).clamp(0, 1)  # a linear map of one-hot vectors
        pseudo = (pseudo - input_range[0]) / (input_range[1] - input_range[0])
        with torch.no_grad():
            model.prior.inputs.copy_(pseudo.reshape(model.prior.inputs.shape))
    if x is not None:
        try_out(model, x)
        set_gamma(model, some(x, 1000, "gamma", seed), seed=seed)
    elif interface.gamma == "optimal":
        raise ValueError("an optimal gamma is measured on data: pass some as x, or a number as gamma")
    return model


def assemble_pythae(interface: Interface, config: PythaeConfig, encoder: nn.Module, decoder: nn.Module) -> Autoencoder:
    """The two modules as an autoencoder, with the prior of the model's class."""
    model = interface.assemble(encoder, decoder)
    if _kind(config).prior == "vamp":
        return model.with_prior(VampPrior(model.encoder, _components(config), interface.data_shape)).eval()
    return model


def _interface(
    config: PythaeConfig,
    kind: Kind,
    left: tuple[str, ...],
    likelihood: str,
    gamma: Any,
    input_range: tuple[float, float],
    x: Tensor | None,
) -> Interface:
    named = config.get("input_dim")
    given = None if x is None else tuple(x.shape[1:])
    shape = given if named is None or (given is not None and fits(given, named)) else named
    if shape is None:
        raise ValueError("the Pythae configuration names no input_dim: pass some data as x")
    notes = [kind.note] if kind.note else []
    if left:
        notes.append(f"left out, since it takes part in training only: {', '.join(map(printable, left))}")
    trained = "cross-entropy" if config.get("reconstruction_loss") == "bce" and kind.gamma is not None else "gaussian"
    if gamma == "trained":
        gamma = kind.gamma if kind.gamma is not None else "optimal"
    return Interface(
        data_shape=shape,
        latent_shape=(config["latent_dim"],),
        posterior=kind.posterior,
        likelihood=trained if likelihood == "trained" else likelihood,
        gamma=gamma,
        input_range=input_range,
        input_shape=named if named is not None and named != shape else None,
        prior="normal" if kind.prior == "normal" else "none",
        notes=tuple(notes),
    )
