r"""Normalising flows on codes: z = μ + σ ∘ f^{-1}(u), u ~ N(0, I), with f an invertible network, trained by maximum likelihood.

Neural spline flows (Durkan et al. 2019) and masked autoregressive flows (Papamakarios et al. 2017) come from zuko. Both are
autoregressive: log_prob takes one pass through the networks, sampling d passes. Codes are standardised first, since splines act on
[-5, 5] only.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Distribution, TransformedDistribution

from expost.density.base import Codes, Density, register
from expost.density.fitting import WIDEST, FitReport, codes_for, drawn_in, held_out_split, require_fitted, spreads
from expost.optimise import Cosine, minimise
from expost.seeds import permutation, seeded

__all__ = ["Flow"]


def _zuko_flows() -> Any:
    """zuko.flows, imported without its side effect: zuko switches off argument validation in torch for the whole process."""
    validate = Distribution._validate_args
    try:
        import zuko.flows
    except ImportError:
        raise ImportError('Flow needs zuko: install it with pip install "expost[flow]"') from None
    finally:
        Distribution.set_default_validate_args(validate)
    return zuko.flows


class Flow(Density):
    r"""p(z) = N(f((z - μ) / σ); 0, I) |det ∂f/∂z|.

    Fitting keeps a tenth of the codes apart, stops when their likelihood no longer improves, and leaves the best parameters found.

    Args:
        d: dimension of the codes.
        transforms: autoregressive layers in f.
        hidden: widths of each layer's network.
        bins: of the splines ("nsf" only).
        kind: "nsf", neural spline flow, or "maf", affine masked autoregressive flow.
        steps, batch_size, lr: of Adam, under a cosine schedule.
        patience: validations, each an epoch or a fiftieth of all steps apart, without improvement after which fitting stops.
    """

    def __init__(
        self,
        d: int,
        transforms: int = 3,
        hidden: tuple[int, ...] = (128, 128),
        bins: int = 8,
        kind: Literal["nsf", "maf"] = "nsf",
        *,
        steps: int = 2000,
        batch_size: int = 256,
        lr: float = 2e-3,
        patience: int = 5,
    ) -> None:
        super().__init__()
        if kind not in ("nsf", "maf"):
            raise ValueError(f'kind must be "nsf" or "maf", not {kind!r}')
        if d < 1 or transforms < 1 or bins < 2:
            raise ValueError("d and transforms must be at least 1, and bins at least 2")
        self.d, self.transforms, self.hidden, self.bins, self.kind = d, transforms, tuple(hidden), bins, kind
        self.steps, self.batch_size, self.lr, self.patience = steps, batch_size, lr, patience
        self.network = self._build(0)
        self.mean: Tensor
        self.std: Tensor
        self.fitted: Tensor
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("std", torch.ones(d))
        self.register_buffer("fitted", torch.tensor(False))
        self.report: FitReport | None = None

    def _build(self, seed: int) -> Any:
        flows = _zuko_flows()
        with seeded("Flow", seed):
            if self.kind == "nsf":
                return flows.NSF(self.d, bins=self.bins, transforms=self.transforms, hidden_features=self.hidden)
            return flows.MAF(self.d, transforms=self.transforms, hidden_features=self.hidden)

    def forward(self) -> TransformedDistribution:
        require_fitted(self)
        shift = AffineTransform(self.mean, self.std, event_dim=1)
        return TransformedDistribution(self.network(), [shift], validate_args=False)

    def fit(self, z: Codes, *, seed: int = 0) -> Self:
        z = codes_for(self, self.d, z, seed=seed, least=10).to(self.mean.dtype)
        kept, apart = held_out_split(len(z), 0.1, permutation(len(z), "flow", seed))
        near = drawn_in(z)  # one outlier would set the scale of all others
        mean, std, varies = spreads(near)  # constant dimensions become narrow, not singular
        self.mean.copy_(mean)
        self.std.copy_(torch.where(varies, near.double().std(0), std))
        white = ((z - self.mean) / self.std).clamp(-WIDEST, WIDEST)
        train, held_out = white[kept.to(z.device)], white[apart.to(z.device)]

        self.network.load_state_dict(self._build(seed).state_dict())
        schedule = Cosine(warmup=0.02)
        trace = minimise(
            lambda batch: -self.network().log_prob(batch).mean(),
            self.network.parameters(),
            data=train,
            steps=self.steps,
            batch_size=min(self.batch_size, len(train)),
            lr=self.lr,
            lr_schedule=lambda progress: schedule.factor(progress, 0),
            seed=seed,
            clip=10.0,
            validate=lambda: -self._mean_log_prob(held_out),
            validate_every=max(1, min(self.steps // 50, len(train) // self.batch_size)) if self.steps >= 50 else self.steps,
            patience=self.patience,
        )
        self.fitted.fill_(True)
        jacobian = float(self.std.log().sum())
        with torch.no_grad():
            self.report = FitReport(
                self._mean_log_prob(train[:10_000]) - jacobian,
                self._mean_log_prob(held_out) - jacobian,
                trace.steps,
                trace.stopped != "all steps done",
                trace.stopped,
            )
        return self

    def _mean_log_prob(self, white: Tensor) -> float:
        """Mean log-likelihood of standardised codes, in batches."""
        return float(torch.cat([self.network().log_prob(part) for part in white.split(4096)]).mean())

    def extra_repr(self) -> str:
        return f"d={self.d}, kind={self.kind!r}"

    @property
    def spec(self) -> str:
        return "flow" if self.kind == "nsf" else f"flow:{self.kind}"

    def arguments(self) -> dict[str, Any]:
        return {"transforms": self.transforms, "hidden": list(self.hidden), "bins": self.bins}

    def like(self, **arguments: Any) -> Flow:
        return Flow(self.d, kind=self.kind, **arguments)


def _named(d: int, kind: str = "nsf") -> Flow:
    return Flow(d, kind=kind)  # type: ignore[arg-type]


register("flow or flow:maf", _named)
