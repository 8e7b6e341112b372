"""``expost.evaluate.importance_bound`` against Pythae 0.1.2's ``VAE.get_nll``: time for the same k, images and weights.

    python benchmarks/likelihood.py --data /path/to/mnist [--loss bce mse] [--device cpu] [--pairs 9] [--json out.json]

The model is Pythae's default VAE, 784-512-16-512-784, trained here for ``--steps`` steps and handed to both as the same weights; ``bce`` is
Bernoulli on binarised images, ``mse`` Pythae's Gaussian of unit variance around a sigmoid. Each library has a process of its own; they take
turns (A B A B ...) on the same images with a new seed each pair, after one warm-up. Reported: the median ratio within pairs with quartiles,
also of processor time for busy machines, and whether both give the same number: the difference of the means of all pairs in units of its
Monte Carlo error. Then the time per image and sample, against the time of the decoder's matrix product alone, which no exact method at the
same k can go below.

    python benchmarks/likelihood.py --data ... --samples 10     fewer than a batch: get_nll then draws (and pays for) 100
    python benchmarks/likelihood.py --data ... --grad           get_nll as it runs when called plainly, building its graph
    python benchmarks/likelihood.py --smoke        tiny, on noise: does it run
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.nets import Linear
from expost.seeds import generator, seeded

LATENT, TARGET = 16, 50.0


def build(loss: str, latent: int = LATENT) -> Autoencoder:
    """Pythae's default VAE; ``bce`` with a Bernoulli head, ``mse`` with N(sigmoid, 1)."""
    encoder = nn.Sequential(nn.Flatten(), Linear(784, 512), nn.ReLU(), Linear(512, 2 * latent))
    decoder = nn.Sequential(Linear(latent, 512), nn.ReLU(), Linear(512, 784), nn.Unflatten(1, (1, 28, 28)))
    head = heads.Bernoulli() if loss == "bce" else heads.Gaussian(1.0, link=torch.sigmoid)
    return Autoencoder(
        Conditional(encoder, heads.Diagonal(), event_dims=1, condition_dims=3),
        Conditional(decoder, head, event_dims=3),
        StandardNormal(latent),
    )


#: Pythae's names of the layers of ``build``, in order.
NAMES = {
    "encoder": ["encoder.layers.0.0", ("encoder.embedding", "encoder.log_var")],
    "decoder": ["decoder.layers.0.0", "decoder.layers.1.0"],
}


def save_pythae(model: Autoencoder, path: str) -> None:
    """The weights under Pythae's names, .npz."""
    out = {}
    for part, module in (("encoder", model.encoder.net), ("decoder", model.decoder.net)):
        layers = [layer for layer in module if isinstance(layer, nn.Linear)]
        for name, layer in zip(NAMES[part], layers, strict=True):
            names = (name,) if isinstance(name, str) else name
            for kind in ("weight", "bias"):
                for key, piece in zip(names, getattr(layer, kind).detach().cpu().chunk(len(names)), strict=True):
                    out[f"{key}.{kind}"] = piece.numpy()
    np.savez(path, **out)


def load_pythae(model: Autoencoder, path: str) -> None:
    """The inverse of :func:`save_pythae`."""
    theirs = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    with torch.no_grad():
        for part, module in (("encoder", model.encoder.net), ("decoder", model.decoder.net)):
            layers = [layer for layer in module if isinstance(layer, nn.Linear)]
            for name, layer in zip(NAMES[part], layers, strict=True):
                for kind in ("weight", "bias"):
                    names = (name,) if isinstance(name, str) else name
                    getattr(layer, kind).copy_(torch.cat([theirs[f"{key}.{kind}"] for key in names]))


def train(loss: str, x: torch.Tensor, steps: int, seed: int) -> Autoencoder:
    import expost
    from expost.objectives import ELBO

    with seeded("benchmark", seed):
        model = build(loss)
    if steps:
        expost.fit(
            model, ELBO(), x, training=expost.Training(steps=steps, batch_size=100, lr=1e-3), seed=seed, device="cpu", progress=False
        )
    return model


def floor(rows: int = 400, repeats: int = 20) -> float:
    """Seconds per code of the decoder's large product, 512 x 784, on this machine's CPU."""
    layer, h = Linear(512, 784), torch.rand(rows, 512)
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            began = time.perf_counter()
            layer(h)
            times.append((time.perf_counter() - began) / rows)
    return statistics.median(times)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def compare(loss: str, x: torch.Tensor, test: torch.Tensor, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from train_vs_pythae import Worker, pythae_python

    if loss == "bce":
        x, test = (x > 0.5).float(), (test > 0.5).float()
    weights, data = str(folder / f"{loss}.npz"), str(folder / f"{loss}.npy")
    save_pythae(train(loss, x, args.steps, args.seed), weights)
    np.save(data, test[: args.images].numpy())
    common = {
        "weights": weights, "data": data, "loss": loss, "latent": LATENT, "threads": args.threads, "device": args.device,
        "pythae_batch": args.pythae_batch, "grad": args.grad,
    }  # fmt: skip
    workers = [
        Worker(f"pythae {loss}", pythae_python(), "_likelihood_side.py", {**common, "side": "pythae"}, folder),
        Worker(f"expost {loss}", sys.executable, "_likelihood_side.py", {**common, "side": "expost"}, folder),
    ]
    samples = args.samples
    if samples > args.pythae_batch and samples % args.pythae_batch:
        raise SystemExit("--samples must be a multiple of --pythae-batch: Pythae rounds it to whole batches")
    answers: dict[str, list[dict[str, Any]]] = {"pythae": [], "expost": []}
    for i in range(args.pairs + 1):
        for side, worker in zip(answers, workers, strict=True):
            answer = worker.ask("measure", images=args.images, samples=samples, seed=args.seed + i)
            if i > 0:  # the first pair warms up
                answers[side].append(answer)
    for worker in workers:
        worker.close()
    ratio = quartiles([a["seconds"] / b["seconds"] for a, b in zip(*answers.values(), strict=True)])
    cpu = quartiles([a["cpu"] / b["cpu"] for a, b in zip(*answers.values(), strict=True)])
    means = {side: [a["log_prob"] for a in rows] for side, rows in answers.items()}
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in means.values()))
    difference = statistics.mean(means["expost"]) - statistics.mean(means["pythae"])
    per = {side: statistics.median(a["seconds"] for a in rows) / args.images / samples * 1e6 for side, rows in answers.items()}
    base = floor() * 1e6 if args.device == "cpu" else None
    print(f"{loss}: {args.images} images, k = {samples}, {args.pairs} pairs, {args.threads} thread(s), {args.device}")
    print(
        f"  ratio {ratio[0]:.2f} (quartiles {ratio[1]:.2f} to {ratio[2]:.2f}), of processor time {cpu[0]:.2f} ({cpu[1]:.2f} to {cpu[2]:.2f})"
    )
    print(
        f"  Pythae {per['pythae']:.3g} us per image and sample, expost {per['expost']:.3g}"
        + (f", product alone {base:.3g}" if base else "")
    )
    print(
        f"  log p: Pythae {statistics.mean(means['pythae']):.4f}, expost {statistics.mean(means['expost']):.4f}, apart {difference:+.4f} ({difference / error:+.1f} errors)"
    )
    if samples < args.pythae_batch:
        print(f"  asked for {samples} samples, get_nll draws {args.pythae_batch} (a whole batch): the two numbers are not of one k")
    return {
        "ratio": ratio, "cpu_ratio": cpu, "microseconds": per, "product_microseconds": base, "log_prob": means, "difference": difference,
        "error": error, "images": args.images, "samples": samples, "threads": args.threads, "device": args.device,
        "met": ratio[0] >= TARGET,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", help="MNIST: name, folder or file; needed unless --smoke")
    parser.add_argument("--loss", nargs="+", default=["bce", "mse"], choices=["bce", "mse"])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--pythae-batch", type=int, default=100, help="batch_size of get_nll (its default)")
    parser.add_argument("--grad", action="store_true", help="let get_nll build its graph, as it does when called plainly")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.smoke:
        args.images, args.samples, args.pairs, args.steps = 4, 200, 3, 20
        x = test = torch.rand(200, 1, 28, 28, generator=generator("smoke"))
    elif args.data is None:
        parser.error("give --data, or --smoke")
    else:
        from expost.data import load

        dataset = load(args.data)
        x, test = dataset.train.x.float() / 255, dataset.test.x.float() / 255
    with tempfile.TemporaryDirectory() as folder:
        results = {loss: compare(loss, x, test, args, Path(folder)) for loss in args.loss}
    print(f"target: {TARGET:g}x")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
