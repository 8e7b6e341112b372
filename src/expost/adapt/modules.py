r"""Any pair of ``nn.Module``s as an autoencoder: one look at data finds out how to speak to them, and says what does not fit.

    model = wrap(encoder, decoder, x)              an expost Autoencoder: densities, samples, metrics and diagnostics work on it
    print(check(model, x_test))                    does it reconstruct? if not, which range or activation would

What is not promised: that the likelihood is the one the model was trained with. A reconstruction loss leaves the variance γ of a Gaussian
open; ``gamma="optimal"`` takes the one that maximises the likelihood of the data given to ``wrap``, γ* = E ‖x - D(z)‖² / D with z ~ q(z | x)
(Dai & Wipf 2019).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expost import heads
from expost.adapt.interface import DecoderNet, EncoderNet, Interface, Likelihood, own
from expost.adapt.outputs import POSTERIORS, Posterior, read_code
from expost.autoencoder import Autoencoder, evaluating
from expost.density.base import Density
from expost.distributions import check_data
from expost.seeds import seeded, some
from expost.tensors import as_data, batches, unit

__all__ = ["finite", "halves", "set_gamma", "try_out", "wrap"]

PROBE = 64
"""Examples of the probing pass."""


class Method(nn.Module):
    """A module seen through one of its methods: ``Method(vae, "encode")(x) = vae.encode(x)``."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, x: Tensor) -> Any:
        return getattr(self.module, self.name)(x)

    def extra_repr(self) -> str:
        return f"method={self.name!r}"


def halves(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(encoder, decoder) of a module that holds both: its methods ``encode`` and ``decode``, or else its parts ``encoder`` and ``decoder``.

    >>> class Both(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)
    >>> halves(Both())[1](torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """
    if callable(getattr(model, "encode", None)) and callable(getattr(model, "decode", None)):
        return Method(model, "encode"), Method(model, "decode")
    encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
    if isinstance(encoder, nn.Module) and isinstance(decoder, nn.Module):
        return encoder, decoder
    raise ValueError(
        f"{type(model).__name__} has neither methods encode and decode nor modules encoder and decoder: pass the two modules one by one"
    )


def wrap(
    encoder: nn.Module,
    decoder: nn.Module,
    x: Tensor,
    *,
    posterior: Posterior | Literal["auto"] = "auto",
    likelihood: Likelihood | heads.Head = "gaussian",
    outputs: Literal["auto", "mean", "logits"] = "auto",
    gamma: float | Literal["optimal"] = "optimal",
    input_range: tuple[float, float] = (0.0, 1.0),
    input_shape: Sequence[int] | None = None,
    prior: Density | Literal["auto", "normal", "none"] = "auto",
    notes: Sequence[str] = (),
    n: int = 1000,
    seed: int = 0,
) -> Autoencoder:
    """An autoencoder of two modules that expost did not build or train; they are referred to, not copied.

    Args:
        encoder: images -> a tensor (a deterministic code), (mean, log variance), named fields, or a torch distribution; codes may be maps.
        decoder: codes -> images as a tensor, named field (``reconstruction``, ``sample`` ...), or a torch distribution, whose mean is used.
        x: some data as expost stores them, (m, *event), uint8 or floats in [0, 1]: what the modules are tried on.
        posterior: what the encoder returns; ``auto`` finds out, see :mod:`expost.adapt.outputs`.
        likelihood: ``gaussian`` with one variance γ, ``bernoulli`` (data are 0 and 1), ``cross-entropy`` (grey levels), or a head that is
            given the decoder's raw output.
        outputs: whether the decoder returns images (``mean``) or ``logits`` of images. ``auto``: images for a Gaussian; for the other two
            logits, unless they all lie in the range of images.
        gamma: γ in units of data in [0, 1]; ``optimal``: the mean squared error on ``n`` data, drawn at random.
        input_range: what the stored 0 and 1 are for the model, e.g. (-1, 1); its outputs are scaled back.
        input_shape: the shape of one example that the encoder wants, if not the data's: (784,).
        prior: p(z) of the training, ``normal``: N(0, I). ``auto``: that for a Gaussian posterior, none for a deterministic code.
        notes: what whoever reads results must know.
        n: how many data γ is measured on; ``seed``: of these data and of their codes.

    Raises:
        ValueError: if the modules fail on the data, sample their codes, or return something of a wrong shape or kind.

    >>> model = wrap(nn.Linear(6, 2), nn.Linear(2, 6), torch.rand(20, 6))
    >>> model.latents(torch.rand(5, 6), at="mean").shape
    torch.Size([5, 2])
    """
    if posterior not in ("auto", *POSTERIORS):
        raise ValueError(f'there is no posterior "{posterior}": choose auto, {", ".join(POSTERIORS)}')
    x = as_data(x)
    if len(x) == 0:
        raise ValueError("there are no data to try the model on: pass at least one example")
    custom = likelihood if isinstance(likelihood, heads.Head) else None
    interface = Interface(
        data_shape=tuple(x.shape[1:]),
        latent_shape=(1,),  # found out below
        posterior="mean" if posterior == "auto" else posterior,
        likelihood="custom" if custom is not None else str(likelihood),
        outputs="mean" if outputs == "auto" else outputs,
        gamma=gamma,
        input_range=(float(input_range[0]), float(input_range[1])),
        input_shape=None if input_shape is None else tuple(input_shape),
        notes=tuple(notes),
    )
    with evaluating(encoder, decoder):
        interface = _probe(encoder, decoder, x, interface, posterior, outputs)
    named = prior if isinstance(prior, str) else "none"
    if named == "auto":
        named = "none" if interface.posterior == "mean" else "normal"
    if named not in ("normal", "none"):
        raise ValueError(f'there is no prior "{named}": choose auto, normal or none, or pass a density')
    interface = dataclasses.replace(interface, prior=named)
    model = interface.assemble(encoder, decoder, head=custom, prior=None if isinstance(prior, str) else prior)
    try_out(model, x)
    set_gamma(model, some(x, n, "gamma", seed), seed=seed)
    return model


def _probe(
    encoder: nn.Module,
    decoder: nn.Module,
    x: Tensor,
    interface: Interface,
    posterior: Posterior | Literal["auto"],
    outputs: Literal["auto", "mean", "logits"],
) -> Interface:
    """Complete the interface from one pass of a few data through both modules."""
    x = _some(x, decoder)
    net = EncoderNet(encoder, interface)
    answer = net.answer(x)
    kind, first, second = read_code(answer, posterior)
    if first.dim() < 2 or len(first) != len(x):
        raise ValueError(
            f"the encoder returns codes of shape {tuple(first.shape)} for {len(x)} examples: it must return one code per example"
        )
    first = own(first, first.dtype, "encoder")
    again = read_code(net.answer(x), posterior)[1]
    finite(first, "codes of the encoder")
    if not torch.equal(first, again) and not torch.allclose(first, again, rtol=1e-3, atol=1e-5):
        raise ValueError(
            "the encoder gives other codes at every call, so it samples them: let it return (mean, log variance) or a distribution instead"
        )
    notes = list(interface.notes)
    if kind == "mean-std" and second is not None and bool((second < 0).any()):
        raise ValueError(
            'the encoder\'s standard deviations are negative in places: are they logarithms? say posterior="mean-logstd" or "mean-logvar"'
        )
    if (
        posterior == "auto"
        and kind == "mean-logvar"
        and second is not None
        and isinstance(answer, tuple | list)
        and bool((second > 0).all())
    ):
        notes.append('the second tensor is taken for log σ², but is positive throughout: if it is σ, say posterior="mean-std"')
    interface = dataclasses.replace(interface, latent_shape=tuple(first.shape[1:]), posterior=kind, notes=tuple(notes))
    made = DecoderNet(decoder, interface).image(first.flatten(1).to(x.dtype))
    finite(made, "images of the decoder")
    low, high = interface.input_range
    inside = bool(((made >= low) & (made <= high)).all())
    if outputs == "auto" and interface.likelihood in ("bernoulli", "cross-entropy") and not inside:
        return dataclasses.replace(interface, outputs="logits")
    return interface


def _some(x: Tensor, module: nn.Module) -> Tensor:
    device = next((p.device for p in module.parameters()), x.device)
    return unit(some(x, PROBE, "probe").to(device))


def finite(x: Tensor, what: str) -> None:
    """``ValueError`` if what a foreign module returned holds NaN or infinity."""
    bad = ~torch.isfinite(x.flatten(1)).all(1)
    if bad.any():
        raise ValueError(
            f"{what} hold NaN or infinity for {int(bad.sum())} of {len(x)} examples: are its weights loaded, is the range of its input right, and "
            "does it return what it is taken for?"
        )


def try_out(model: Autoencoder, x: Tensor) -> None:
    """One pass of a few data through a wrapped model; ``ValueError`` if it cannot encode or decode them."""
    with evaluating(model):
        x = _some(x, model.decoder)
        net = model.encoder.net
        assert isinstance(net, EncoderNet)
        if tuple(x.shape[1:]) != net.interface.data_shape:
            raise ValueError(
                f"the model is for data of shape {net.interface.data_shape}, not {tuple(x.shape[1:])}: choose other data, or pad them"
            )
        q = model.encode(x)
        finite(q.mean, "codes of the encoder")
        finite(q.stddev, "standard deviations of the encoder's codes")
        p = model.decode(q.mean)
        if net.interface.likelihood != "custom":
            finite(p.mean, "images of the decoder")
        if net.interface.likelihood != "bernoulli":
            check_data(p, x)
        elif bool(((x != 0) & (x != 1)).any()):
            raise ValueError(
                "a Bernoulli likelihood is for pixels that are exactly 0 or 1, and these are grey levels: choose cross-entropy"
            )


def set_gamma(model: Autoencoder, x: Tensor, *, seed: int = 0, batch_size: int = 100) -> None:
    """Set an ``optimal`` γ to the mean squared error of x (m, *event) decoded from one sample of each posterior; other heads are left alone."""
    head = model.decoder.head
    if not isinstance(head, heads.Gaussian) or head.kind != "optimal":
        return
    z = model.latents(x, at="sample", seed=seed, batch_size=batch_size)
    total, count = 0.0, 0
    with evaluating(model), seeded("gamma", seed):
        for data, codes in zip(batches(x, batch_size), batches(z, batch_size), strict=True):
            squared = (unit(data.to(model.device)) - model.decode(codes).mean).double().square()
            total, count = total + float(squared.sum()), count + squared.numel()
        if not math.isfinite(total):
            raise ValueError(
                f"the squared error of images decoded from samples of q(z | x) is {total}, so it gives no variance gamma: is what the encoder "
                "returns as its scale taken for the right thing?"
            )
        head.log_scale.fill_(0.5 * math.log(max(total / count, 1e-12)))
        head.tracked.fill_(1)
