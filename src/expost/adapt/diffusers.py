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
from typing import Annotated, Any, Literal, TypedDict

from torch import Tensor, nn

from expost.adapt.interface import Likelihood
from expost.adapt.modules import wrap
from expost.autoencoder import Autoencoder
from expost.seeds import seeded
from expost.system.files import read_json
from expost.system.schema import Meta, convert
from expost.train.folder import bounded, load_weights

__all__ = ["DiffusersConfig", "build_diffusers", "diffusers_config", "from_diffusers", "read_diffusers_config"]

Channels = Annotated[int, Meta(ge=1, le=2**14)]
Numbers = Annotated[tuple[float, ...], Meta(max_length=2**14)] | None


class DiffusersConfig(TypedDict, total=False):
    """The settings of an AutoencoderKL, as far as a file may choose them: nothing else reaches the library."""

    in_channels: Channels
    out_channels: Channels
    down_block_types: Annotated[tuple[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], ...], Meta(min_length=1, max_length=12)]
    up_block_types: Annotated[tuple[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], ...], Meta(min_length=1, max_length=12)]
    block_out_channels: Annotated[tuple[Channels, ...], Meta(min_length=1, max_length=12)]
    layers_per_block: Annotated[int, Meta(ge=1, le=64)]
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"]
    latent_channels: Channels
    norm_num_groups: Channels
    sample_size: Annotated[int, Meta(ge=1, le=2**20)]
    scaling_factor: float
    shift_factor: float | None
    latents_mean: Numbers
    latents_std: Numbers
    force_upcast: bool
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool


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


def read_diffusers_config(folder: str | Path) -> tuple[Path, DiffusersConfig]:
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
    return folder, diffusers_config(config)


def diffusers_config(value: Mapping[str, Any]) -> DiffusersConfig:
    """The settings in a configuration, checked; the names with a leading underscore, which diffusers writes for itself, are left out."""
    own = {k: v for k, v in value.items() if not k.startswith("_")}
    what = "diffusers cannot build an AutoencoderKL from this configuration"
    unknown = own.keys() - DiffusersConfig.__annotations__.keys()
    if unknown:
        raise ValueError(f'{what} (there is no setting "{min(unknown)}")')
    config = convert(own, DiffusersConfig, what)
    counts = {len(config[name]) for name in ("down_block_types", "up_block_types", "block_out_channels") if name in config}
    if len(counts) > 1:
        raise ValueError(f"{what} (it names {' and '.join(map(str, sorted(counts)))} blocks where there must be as many of each kind)")
    return config


def build_diffusers(config: DiffusersConfig, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of a configuration, with weights drawn from the seed."""
    vae = _build(config, seed)
    return Encoder(vae), Decoder(vae)


def _build(config: DiffusersConfig, seed: int) -> Any:
    cls = _class()
    with seeded("init", seed):
        try:
            return cls(**config)
        except Exception as error:
            raise ValueError(f"diffusers cannot build an AutoencoderKL from this configuration ({' '.join(str(error).split())})") from None


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
        config = diffusers_config(source)
        encoder, decoder = build_diffusers(config, seed)
    else:
        folder, config = read_diffusers_config(source)
        files = _weights(folder)
        with bounded(folder / "config.json", *files):
            vae = _build(config, seed)
        load_weights(vae, _state(files), str(files[0]))
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


def _weights(folder: Path) -> list[Path]:
    """The files of weights: one, its parts (``-00001-of-00002``), or where there is no other a variant of lower precision (``.fp16``)."""
    whole = folder / "diffusion_pytorch_model.safetensors"
    if whole.is_file():
        return [whole]
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    parts = [file for file in files if "." not in file.stem]
    variants = {file.stem.split(".")[1].partition("-")[0] for file in files if file not in parts}
    chosen = parts or [file for file in files if file.stem.split(".")[1].partition("-")[0] == min(variants)]
    if not chosen:
        raise ValueError(
            f"{folder} holds no diffusion_pytorch_model.safetensors: save the model with save_pretrained(folder, safe_serialization=True)"
        )
    return chosen


#: How models from before 2023 call the parts of their attention.
_FORMER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _state(files: list[Path]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({type(error).__name__}): get it again") from None
    for former, now in _FORMER.items():
        state = {name.replace(former, now): value for name, value in state.items()}
    return state
