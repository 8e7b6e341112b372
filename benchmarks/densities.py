"""GMM-10 with full covariance: ``expost.density.GMM`` against ``sklearn.mixture.GaussianMixture`` with its defaults, on real codes.

    python benchmarks/densities.py [--dims 16 64] [--pairs 7] [--codes codes.npz] [--data ../shared/data/mnist]

Both sides get the same 60 000 float32 codes and the same number of threads, and take turns (A B A B ...), each pair with its own seed.
Reported: the median ratio of their times with its range, and the mean log-likelihood in nats of 10 000 held-out codes on both sides.
The ratio of processor times is there for busy machines, on which elapsed times with two threads say little (then also use --threads 1).
Without ``--codes`` (arrays train_16, test_16, ...), codes are those of a small autoencoder trained here on MNIST, kept in a temporary folder.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from expost.density import GMM, FullGaussian
from expost.seeds import permutation, seeded

CACHE = Path(tempfile.gettempdir()) / "expost-benchmark-codes"


def mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """Training and test images, (n, 784) float32 in [0, 1]."""
    import pyarrow.parquet as parquet
    from PIL import Image

    parts = []
    for split in ("train", "test"):
        column = parquet.read_table(next(folder.glob(f"{split}-*.parquet"))).column("image").to_pylist()
        pictures = np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in column])
        parts.append(torch.from_numpy(pictures).reshape(len(pictures), -1).float() / 255)
    return parts[0], parts[1]


def train_codes(folder: Path, d: int, epochs: int = 6) -> tuple[Tensor, Tensor]:
    """Codes of a regularised autoencoder 784-400-200-d, trained for ``epochs``; cached."""
    file = CACHE / f"mnist-{d}-{epochs}.npz"
    if not file.is_file():
        print(f"training an autoencoder for codes of {d} dimensions ...", flush=True)
        x, test = mnist(folder)
        with seeded("benchmark", d):
            encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 200), nn.ReLU(), nn.Linear(200, d))
            decoder = nn.Sequential(nn.Linear(d, 200), nn.ReLU(), nn.Linear(200, 400), nn.ReLU(), nn.Linear(400, 784))
            optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3, fused=True)
            for epoch in range(epochs):
                for rows in permutation(len(x), "benchmark", epoch).split(256):
                    z = encoder(x[rows])
                    loss = (decoder(z) - x[rows]).square().sum(1).mean() + 1e-3 * z.square().sum(1).mean()
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
        with torch.no_grad():
            CACHE.mkdir(exist_ok=True)
            np.savez(file, train=encoder(x).numpy(), test=encoder(test).numpy())
    saved = np.load(file)
    return torch.from_numpy(saved["train"]), torch.from_numpy(saved["test"])


@dataclass(frozen=True)
class Fit:
    """Elapsed and processor seconds, held-out nats per code, and iterations on all codes."""

    seconds: float
    cpu: float
    held_out: float
    iterations: int

    def __str__(self) -> str:
        return f"{self.seconds:7.2f} s ({self.cpu:7.2f} s cpu) {self.held_out:8.3f} nats {self.iterations:3d} it"


def ours(train: Tensor, test: Tensor, seed: int) -> Fit:
    start, cpu = time.perf_counter(), time.process_time()
    density = GMM(train.shape[1], 10).fit(train, seed=seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert density.report is not None
    return Fit(seconds, cpu, float(density().log_prob(test).mean()), density.report.iterations or 0)


def theirs(train: Tensor, test: Tensor, seed: int) -> Fit:
    from sklearn.mixture import GaussianMixture

    codes = train.numpy()
    start, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GaussianMixture(10, random_state=seed).fit(codes)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Fit(seconds, cpu, float(model.score(test.numpy())), model.n_iter_)


def compare(train: Tensor, test: Tensor, pairs: int) -> None:
    n, d = train.shape
    ours(train[:2000], test, 0), theirs(train[:2000], test, 0)  # imports and warm-up
    a: list[Fit] = []
    b: list[Fit] = []
    for seed in range(pairs):
        for side, found in ((ours, a), (theirs, b)) if seed % 2 == 0 else ((theirs, b), (ours, a)):
            found.append(side(train, test, seed))
        print(f"  expost {a[-1]}   scikit-learn {b[-1]}   ratio {b[-1].seconds / a[-1].seconds:5.2f}", flush=True)
    print(f"{n} codes of {d} dimensions, {pairs} pairs")
    for what, values in (("elapsed", [(x.seconds, y.seconds) for x, y in zip(a, b, strict=True)]),
                         ("processor", [(x.cpu, y.cpu) for x, y in zip(a, b, strict=True)])):  # fmt: skip
        ratios = sorted(y / x for x, y in values)
        print(
            f"  {what}: expost {statistics.median(x for x, _ in values):.2f} s, scikit-learn {statistics.median(y for _, y in values):.2f} s; "
            f"ratio median {statistics.median(ratios):.2f}, range {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
    gains = [x.held_out - y.held_out for x, y in zip(a, b, strict=True)]
    error = statistics.stdev(gains) / pairs**0.5 if pairs > 1 else float("nan")
    gaussian = float(FullGaussian(d).fit(train)().log_prob(test).mean())
    print(
        f"  held-out nats per code: expost {statistics.fmean(x.held_out for x in a):.3f}, "
        f"scikit-learn {statistics.fmean(y.held_out for y in b):.3f}, difference {statistics.fmean(gains):+.3f} ± {error:.3f}; "
        f"worst {min(x.held_out for x in a):.3f} and {min(y.held_out for y in b):.3f}; one Gaussian {gaussian:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--codes", type=Path, help="an .npz of arrays train_D and test_D for each D in --dims")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist")
    arguments = parser.parse_args()
    if arguments.codes is None and not arguments.data.is_dir():
        parser.error(f"no images in {arguments.data}: pass --data with a folder of MNIST parquet files, or --codes")
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        for d in arguments.dims:
            if arguments.codes is not None:
                saved = np.load(arguments.codes)
                train, test = (torch.from_numpy(saved[f"{part}_{d}"]).float() for part in ("train", "test"))
            else:
                train, test = train_codes(arguments.data, d)
            compare(train, test, arguments.pairs)


if __name__ == "__main__":
    main()
