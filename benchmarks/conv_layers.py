"""Training steps of one convolutional VAE with torch's layers and with ours, side by side in one process.

The network is Pythae's for MNIST (encoder 1-128-256-512-1024, decoder 1024-512-256-1, 17.6 million weights), batch 100, Adam, one
gradient step = forward, backward, update. Every round runs every variant once, in turn, so that a slow moment of the machine falls on
all of them; the ratio is taken within each round, and the median and the range over the rounds are printed.

    python benchmarks/conv_layers.py [--threads 2] [--rounds 9] [--loss-steps 300] [--mnist FOLDER_OF_PARQUET]

The second table starts all variants from equal weights and feeds them equal batches: the loss after ``--loss-steps`` steps, averaged over
the last fifth, says what bfloat16 costs. Without ``--mnist`` the images are scikit-learn's digits, enlarged to 28x28.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expost.fast import layers
from expost.nets.shapes import Rows

LATENT = 16


@dataclass(frozen=True)
class Variant:
    """What is timed: whose layers, which precision, which Adam."""

    name: str
    ours: bool
    bfloat16: bool
    fused: bool


BASE = Variant("torch, float32, default Adam", ours=False, bfloat16=False, fused=False)
VARIANTS = (
    BASE,
    Variant("torch, float32, fused Adam", ours=False, bfloat16=False, fused=True),
    Variant("torch, bfloat16 autocast, fused Adam", ours=False, bfloat16=True, fused=True),
    Variant("expost, float32, fused Adam", ours=True, bfloat16=False, fused=True),
    Variant("expost, bfloat16 autocast, fused Adam", ours=True, bfloat16=True, fused=True),
)


class VAE(nn.Module):
    """Pythae's MNIST network with a diagonal Gaussian posterior and squared error."""

    def __init__(self, ours: bool) -> None:
        super().__init__()
        conv: Callable[..., nn.Module] = layers.Conv2d if ours else nn.Conv2d
        deconv: Callable[..., nn.Module] = layers.ConvTranspose2d if ours else nn.ConvTranspose2d
        encoder: list[nn.Module] = []
        for n_in, n_out in ((1, 128), (128, 256), (256, 512), (512, 1024)):
            encoder += [conv(n_in, n_out, 4, 2, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
        self.encoder = nn.Sequential(*encoder, Rows() if ours else nn.Flatten(), nn.Linear(1024, 2 * LATENT))
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 1024 * 4 * 4),
            nn.Unflatten(1, (1024, 4, 4)),
            deconv(1024, 512, 3, 2, padding=1),
            nn.BatchNorm2d(512),
            nn.ReLU(),
            deconv(512, 256, 3, 2, padding=1, output_padding=1),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            deconv(256, 1, 3, 2, padding=1, output_padding=1),
            nn.Sigmoid(),
        )

    def loss(self, x: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).float().chunk(2, -1)
        z = mean + noise * (0.5 * log_variance).exp()
        error = 0.5 * (self.decoder(z).float() - x).square().sum((1, 2, 3))
        kl = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1)
        return (error + kl).mean()


class Run:
    """One variant with its optimiser."""

    def __init__(self, variant: Variant, state: dict[str, Tensor]) -> None:
        self.variant, self.model = variant, VAE(variant.ours)
        self.model.load_state_dict(state)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=variant.fused or None)

    def step(self, x: Tensor, noise: Tensor) -> float:
        self.optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.variant.bfloat16):
            loss = self.model.loss(x, noise)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


def images(mnist: Path | None) -> Tensor:
    """(n, 1, 28, 28) in [0, 1]."""
    if mnist is None:
        from sklearn.datasets import load_digits

        digits = torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
        return F.interpolate(digits, size=(28, 28), mode="bilinear")
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    rows = pq.read_table(next(iter(sorted(mnist.glob("train*.parquet")))), columns=["image"])["image"].slice(0, 20_000).to_pylist()
    return torch.from_numpy(np.stack([np.array(Image.open(io.BytesIO(row["bytes"]))) for row in rows]))[:, None].float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--loss-steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--mnist", type=Path, default=None)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    state = VAE(ours=False).state_dict()
    x = images(args.mnist)
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        return x[torch.randint(len(x), (args.batch,), generator=generator)], torch.randn(args.batch, LATENT, generator=generator)

    runs = [Run(variant, state) for variant in VARIANTS]
    for run in runs:
        for _ in range(2):
            run.step(*batch())
    wall: dict[str, list[float]] = {v.name: [] for v in VARIANTS}
    busy: dict[str, list[float]] = {v.name: [] for v in VARIANTS}
    for _ in range(args.rounds):
        data = batch()
        for run in runs:
            start, start_cpu = time.perf_counter(), time.process_time()
            run.step(*data)
            wall[run.variant.name].append(time.perf_counter() - start)
            busy[run.variant.name].append(time.process_time() - start_cpu)
    print(f"torch {torch.__version__}, {args.threads} threads, batch {args.batch}, {args.rounds} rounds")
    print(f"{'one training step':40} {'wall ms':>8} {'CPU ms':>8}   {BASE.name} over this: wall (range), CPU")
    for variant in VARIANTS:
        ratios = [a / b for a, b in zip(wall[BASE.name], wall[variant.name], strict=True)]
        cpu = [a / b for a, b in zip(busy[BASE.name], busy[variant.name], strict=True)]
        print(
            f"{variant.name:40} {1e3 * statistics.median(wall[variant.name]):8.0f} {1e3 * statistics.median(busy[variant.name]):8.0f}   "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f}), {statistics.median(cpu):.2f}"
        )
    if args.loss_steps:
        print(f"\nloss after {args.loss_steps} steps from equal weights on equal batches (mean of the last fifth, nats per image)")
        for variant in (VARIANTS[1], VARIANTS[2], VARIANTS[4]):
            generator.manual_seed(1)
            run = Run(variant, state)
            losses = [run.step(*batch()) for _ in range(args.loss_steps)]
            print(f"{variant.name:40} {statistics.mean(losses[-max(1, args.loss_steps // 5) :]):9.4f}")


if __name__ == "__main__":
    main()
