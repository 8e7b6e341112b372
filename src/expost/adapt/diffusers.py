"""AutoencoderKL of diffusers (the first stage of latent diffusion; Rombach et al. 2022) as an autoencoder of expost.

    encode   x in [-1, 1] ──► encoder ── quant_conv ──► (μ, log σ²), two maps (c, h, w); log σ² clamped to [-30, 20]
    decode   z ── post_quant_conv ──► decoder ──► x̂ in [-1, 1]

Codes here are z itself, flattened to c h w numbers. A diffusion model works on (z - shift) · scaling_factor, which is noted, not applied.
The KL weight of these models is about 10⁻⁶, so N(0, I) is their prior by name only: fit a density, or see what ``expost diagnose`` says.

diffusers is an optional library and imported only here; it takes part in building the networks, not afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from expost.adapt.interface import Likelihood
from expost.adapt.modules import wrap
from expost.autoencoder import Autoencoder
from expost.files import read_json
from expost.seeds import seeded

__all__ = ["build_diffusers", "from_diffusers", "read_diffusers_config"]


class Encoder(nn.Module):
    """x in [-1, 1] -> (μ, log σ²)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.encoder(x)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)


class Decoder(nn.Module):
    """z -> x̂ in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


def _class() -> Any:
    import warnings

    try:
        with warnings.catch_warnings():  # the import adds filters for everybody: they are taken back
            from diffusers import AutoencoderKL
    except ImportError:
        raise ValueError('an AutoencoderKL needs diffusers, which is not installed: pip install "expost[diffusers]"') from None
    return AutoencoderKL


def read_diffusers_config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder that holds the autoencoder (``vae`` inside a pipeline's folder) and its configuration."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    config = read_json(folder / "config.json", "the configuration of a diffusers autoencoder")
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name != "AutoencoderKL":
        raise ValueError(
            f"{folder / 'config.json'} describes {name or 'no diffusers model'}, not an AutoencoderKL: wrap its encoder and decoder as modules"
        )
    return folder, config


def build_diffusers(config: Mapping[str, Any], seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of a configuration, with weights drawn from the seed."""
    cls = _class()
    settings = {k: v for k, v in config.items() if not k.startswith("_")}
    with seeded("init", seed):
        try:
            vae = cls(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"diffusers cannot build an AutoencoderKL from this configuration ({' '.join(str(error).split())})") from None
    return Encoder(vae), Decoder(vae)


def from_diffusers(
    source: str | Path | Mapping[str, Any],
    x: Tensor,
    *,
    likelihood: Likelihood = "gaussian",
    gamma: float | Literal["optimal"] = "optimal",
    seed: int = 0,
) -> Autoencoder:
    """A diffusers AutoencoderKL: from a folder written by ``save_pretrained`` (safetensors), or untrained from a configuration.

    Args:
        source: folder, or the configuration as a mapping (weights are then drawn from ``seed``).
        x: some data (m, C, H, W); their size decides the size of the latent maps.
        likelihood, gamma: as in :func:`expost.adapt.wrap`.

    Raises:
        ValueError: if diffusers is not installed, the folder holds another model or no safetensors, or the data do not fit.
    """
    if isinstance(source, Mapping):
        config = dict(source)
        encoder, decoder = build_diffusers(config, seed)
    else:
        folder, config = read_diffusers_config(source)
        if not list(folder.glob("diffusion_pytorch_model*.safetensors*")):
            raise ValueError(
                f"{folder} holds no diffusion_pytorch_model.safetensors: save the model with save_pretrained(folder, safe_serialization=True)"
            )
        try:
            vae = _class().from_pretrained(folder, use_safetensors=True, local_files_only=True).float()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"diffusers cannot load {folder} ({' '.join(str(error).split())[:200]}): check the folder") from None
        encoder, decoder = Encoder(vae), Decoder(vae)
    if x.dim() != 4 or x.shape[1] != config.get("in_channels", 3):
        raise ValueError(
            f"this AutoencoderKL is for images with {config.get('in_channels', 3)} channels, not for data of shape {tuple(x.shape[1:])}: choose other data"
        )
    shift, scale = config.get("shift_factor"), config.get("scaling_factor", 0.18215)
    note = f"codes are z; a diffusion model sees {f'(z - {shift:g})' if shift else 'z'} · {scale:g}"
    return wrap(
        encoder, decoder, x, posterior="mean-logvar", likelihood=likelihood, gamma=gamma, input_range=(-1.0, 1.0), notes=(note,), seed=seed
    )
