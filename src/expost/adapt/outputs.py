"""What other people's encoders and decoders return, read in one place.

An encoder answers with a code, or with the parameters of a Gaussian q(z | x); a decoder with an image. Both do so as a tensor, a tuple, a
dict or an object with named fields (Pythae's and transformers' ``ModelOutput``, diffusers' ``latent_dist``), or a torch distribution.

| posterior | first part | second part | σ |
|---|---|---|---|
| ``mean`` | code | - | 0, a Dirac |
| ``mean-logvar`` | μ | log σ² | e^(second / 2) |
| ``mean-logstd`` | μ | log σ | e^second |
| ``mean-std`` | μ | σ | second |
| ``full`` | μ | L, lower triangular | covariance L Lᵀ |

Found out by ``auto``: a tensor is a code; two tensors are μ and log σ², the commonest order; named fields and distributions say it themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from expost.distributions import Dirac

__all__ = ["POSTERIORS", "Posterior", "read_code", "read_image"]

Posterior = Literal["mean", "mean-logvar", "mean-logstd", "mean-std", "full"]
POSTERIORS: tuple[Posterior, ...] = ("mean", "mean-logvar", "mean-logstd", "mean-std", "full")

MEANS = ("mean", "mu", "loc", "z_mean", "embedding", "embeddings", "latents", "latent", "code", "codes", "z")
SECONDS: dict[Posterior, tuple[str, ...]] = {
    "mean-logvar": ("logvar", "log_var", "log_variance", "log_covariance", "z_log_var", "z_logvar"),
    "mean-logstd": ("logstd", "log_std", "log_sigma", "logsigma", "log_scale"),
    "mean-std": ("std", "stddev", "sigma", "scale"),
}
NESTED = ("latent_dist", "posterior", "distribution")
IMAGES = ("reconstruction", "reconstructions", "recon_x", "x_recon", "recon", "x_hat", "sample", "output", "logits", "mean", "mu", "loc")


def read_code(output: Any, posterior: Posterior | Literal["auto"] = "auto") -> tuple[Posterior, Tensor, Tensor | None]:
    """(posterior, first part, second part) of what an encoder returned.

    Raises:
        ValueError: if the output is none of the above, or not what ``posterior`` says.

    >>> read_code({"mu": torch.zeros(2, 3), "log_sigma": torch.zeros(2, 3)})[0]
    'mean-logstd'
    """
    if isinstance(output, Tensor):
        if posterior == "auto" or posterior == "mean":  # mypy narrows the type
            return "mean", output, None
        if posterior == "full" or output.dim() < 2 or output.shape[1] % 2:
            raise ValueError(
                f"the encoder returns one tensor of shape {tuple(output.shape)}, which does not split into a mean and a scale: "
                'let it return (mean, log variance), or say posterior="mean" if it is a deterministic code'
            )
        first, second = output.chunk(2, dim=1)
        return posterior, first, second
    if isinstance(output, Distribution):
        return _of_distribution(output, posterior)
    for name in NESTED:
        inner = _field(output, name)
        if inner is not None and not isinstance(inner, Tensor):
            return read_code(inner, posterior)
    named = _names(output)
    if any(isinstance(_field(output, name), Tensor) for name in MEANS):
        return _of_fields(output, named, posterior)
    if isinstance(output, tuple | list) and output:
        return _of_tuple(tuple(output), posterior)
    raise ValueError(
        f"the encoder returns {_describe(output, named)}, which is not understood: let it return a tensor, (mean, log variance), or a torch distribution"
    )


def _of_tuple(parts: tuple[Any, ...], posterior: Posterior | Literal["auto"]) -> tuple[Posterior, Tensor, Tensor | None]:
    if len(parts) == 1 or posterior == "mean" or not isinstance(parts[0], Tensor):
        return read_code(parts[0], posterior)
    if not isinstance(parts[1], Tensor):
        raise ValueError(f"the encoder returns a tensor and a {type(parts[1]).__name__}: let it return (mean, log variance)")
    if posterior == "auto":
        if len(parts) > 2:
            raise ValueError(
                f'the encoder returns {len(parts)} tensors, so which are mean and scale is unclear: say posterior="mean-logvar" if they are the '
                "first two, else let it return (mean, log variance)"
            )
        posterior = "mean-logvar"
    return posterior, parts[0], parts[1]


def _of_fields(output: Any, named: tuple[str, ...], posterior: Posterior | Literal["auto"]) -> tuple[Posterior, Tensor, Tensor | None]:
    first = next(value for value in (_field(output, name) for name in MEANS) if isinstance(value, Tensor))
    if posterior == "mean":
        return "mean", first, None
    for kind, names in SECONDS.items():
        second = next((value for value in (_field(output, name) for name in names) if isinstance(value, Tensor)), None)
        if second is not None and posterior in ("auto", kind):
            return kind, first, second
    if posterior == "auto":
        return "mean", first, None
    raise ValueError(f'the encoder returns {_describe(output, named)} without what posterior="{posterior}" needs: say posterior="auto"')


def _of_distribution(q: Distribution, posterior: Posterior | Literal["auto"]) -> tuple[Posterior, Tensor, Tensor | None]:
    if posterior == "mean" or isinstance(q, Dirac):
        return "mean", q.mean, None
    inner = q
    while isinstance(inner, Independent):
        inner = inner.base_dist
    found: Posterior | None = "full" if isinstance(inner, MultivariateNormal) else "mean-std" if isinstance(inner, Normal) else None
    if found is None:
        raise ValueError(
            f'posteriors of type {type(inner).__name__} are not supported: let the encoder return a Gaussian, or say posterior="mean" to use their means'
        )
    if posterior not in ("auto", found):
        raise ValueError(f'the encoder returns a {type(inner).__name__} distribution: say posterior="auto" or "mean", not "{posterior}"')
    return found, q.mean, inner.scale_tril if isinstance(inner, MultivariateNormal) else q.stddev


def read_image(output: Any) -> Tensor:
    """The image, or the mean image, in what a decoder returned."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Distribution):
        return output.mean
    for name in IMAGES:
        inner = _field(output, name)
        if isinstance(inner, Tensor | Distribution):
            return read_image(inner)
    if isinstance(output, tuple | list) and output:
        return read_image(output[0])
    raise ValueError(
        f"the decoder returns {_describe(output, _names(output))}, which is not understood: let it return a tensor or a torch distribution"
    )


def _field(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _names(output: Any) -> tuple[str, ...]:
    if isinstance(output, Mapping):
        return tuple(map(str, output))
    return tuple(getattr(output, "_fields", ())) or tuple(k for k in getattr(output, "__dict__", {}) if not k.startswith("_"))


def _describe(output: Any, names: tuple[str, ...]) -> str:
    return f"a {type(output).__name__}" + (f" with {', '.join(names[:8])}" if names else "")


def joined(first: Tensor, second: Tensor | None, posterior: Posterior) -> Tensor:
    """The features (n, k) that the posterior's head reads: the parts flattened to vectors and laid side by side."""
    mean = first.flatten(1)
    if second is None:
        return mean
    if posterior == "full":
        if second.shape != (*mean.shape, mean.shape[1]):
            raise ValueError(
                f"the encoder's codes have {mean.shape[1]} numbers and its triangular matrices the shape {tuple(second.shape[1:])}: give one of "
                f"{mean.shape[1]} x {mean.shape[1]} for each example"
            )
        rows, columns = torch.tril_indices(mean.shape[1], mean.shape[1], -1, device=mean.device)
        return torch.cat([mean, second.diagonal(dim1=-2, dim2=-1).log(), second[..., rows, columns]], 1)
    try:
        return torch.cat([mean, second.expand(first.shape).flatten(1)], 1)
    except RuntimeError:
        raise ValueError(
            f"the encoder's mean has shape {tuple(first.shape)} and its scale {tuple(second.shape)}: give the latents one scale each"
        ) from None
