"""``expost.fit`` against Pythae 0.1.2, side by side.

    python benchmarks/train_vs_pythae.py --data /path/to/mnist [--what conv mlp quality] [--json out.json]

* ``conv``, ``mlp``: images per second on Pythae's own networks (its MNIST benchmark VAE; its default MLP), from the same initial
  weights, on the same batches and noise, with the same loss and the same Adam. And that the loss after as many steps is no worse.
* ``quality``: the best Fréchet distance of 10 000 samples after the same number of seconds of training.

Both libraries train in processes of their own that take turns (see ``_gate.py``): A B C A B C ..., a few seconds each, so that a machine
whose speed swings is equally unfair to all. Ratios are taken within a round, and their median and range are reported.
Pythae gets its own environment (``.venv-pythae``, made on first use).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expost.data import load
from expost.evaluate.features.base import extract
from expost.evaluate.features.classifier import classifier_extractor
from expost.evaluate.metrics.frechet import frechet_distance
from expost.seeds import permutation, seed_from

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LATENT = 16
TARGETS = {"conv": 3.0, "mlp": 2.0, "quality": 3.0}
STEPS = {"conv": 5, "mlp": 100}

CANDIDATES: dict[str, dict[str, Any]] = {
    "VAE conv": {"model": "vae", "net": "conv", "samplers": ["normal", "gmm10", "gmm50", "two-stage"]},
    "RAE_L2 conv": {"model": "rae_l2", "net": "conv", "samplers": ["gmm10", "gmm50"]},
    "RAE_GP conv": {"model": "rae_gp", "net": "conv", "samplers": ["gmm10"]},
    "WAE conv": {"model": "wae", "net": "conv", "samplers": ["normal", "gmm10", "gmm50"]},
    "VAE mlp": {"model": "vae", "net": "mlp", "samplers": ["normal", "gmm10", "gmm50", "two-stage"]},
    "RAE_L2 mlp": {"model": "rae_l2", "net": "mlp", "samplers": ["gmm10", "gmm100"]},
}
"""What a user of Pythae may choose: its models, networks and samplers; its best is compared."""


def pythae_python() -> Path:
    """The interpreter of an environment with Pythae 0.1.2 and the same torch; made on first use."""
    folder = ROOT / ".venv-pythae"
    python = folder / "bin" / "python"
    if subprocess.run([python, "-c", "import pythae"], capture_output=True).returncode if python.exists() else True:
        print(f"making {folder} (once)")
        venv.create(folder, with_pip=True, clear=True)
        wanted = [f"torch=={torch.__version__.split('+')[0]}", "pythae==0.1.2"]
        index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"] if os.environ.get("EXPOST_CPU_INDEX") else []
        subprocess.run([python, "-m", "pip", "install", "--quiet", *index, *wanted], check=True)
    return python


class Worker:
    """A training in another process; see ``_gate.py`` for the other end."""

    def __init__(self, name: str, python: Path | str, script: str, options: dict[str, Any], folder: Path) -> None:
        self.name = name
        file = folder / f"{name.replace(' ', '_')}.json"
        file.write_text(json.dumps(options))
        self.log = file.with_suffix(".log")
        threads = str(options["threads"])  # also for scikit-learn's mixtures
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{HERE}",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, HERE / script, file],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=folder,
            )
        self.trained, self.steps, self.finished = 0.0, 0, False
        self._answer()  # ready

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early; its log:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def run(self, **slice_: float) -> dict[str, Any]:
        """Train for ``steps=`` or ``seconds=``."""
        answer = self.ask("run", **slice_)
        self.trained, self.finished = answer["trained"], answer["finished"]
        self.steps += answer["steps"]
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def speed(net: str, x: np.ndarray, held_out: np.ndarray, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rounds of one slice each of Pythae, expost by default and expost in float32; the first round warms up."""
    n = len(x) // args.batch * args.batch  # the last partial batch is left out, as fit does, so that batches stay the same
    slice_, rounds = args.steps or STEPS[net], args.pairs + 1
    epochs = -(-slice_ * rounds * args.batch // n)
    paths = {name: str(folder / f"{name}.np") for name in ("data", "orders", "held_out", "weights", "noise")}
    paths = {name: path + ("z" if name == "weights" else "y") for name, path in paths.items()}
    np.save(paths["data"], x[:n])
    np.save(paths["held_out"], held_out)
    np.save(paths["orders"], np.stack([permutation(n, "order", args.seed, epoch).numpy() for epoch in range(epochs)]))
    steps = slice_ * rounds
    np.save(paths["noise"], np.array([seed_from("noise", args.seed, step, 0) for step in range(steps)]))  # as fit does
    common = {
        "data": paths["data"], "orders": paths["orders"], "weights": paths["weights"], "net": net, "latent": LATENT, "seed": args.seed,
        "batch": args.batch, "lr": args.lr, "threads": args.threads, "steps": steps, "log_every": slice_,
    }  # fmt: skip
    workers = [
        Worker("pythae", pythae_python(), "_pythae_side.py", {**common, "model": "vae", "epochs": epochs, "noise": paths["noise"]}, folder)
    ]
    for precision in ("auto", "float32"):
        options = {**common, "what": "speed", "precision": precision}
        workers.append(Worker(f"expost {precision}", sys.executable, "_expost_side.py", options, folder))
    rates: dict[str, list[float]] = {w.name: [] for w in workers}
    cpu: dict[str, list[float]] = {w.name: [] for w in workers}
    for i in range(rounds):
        for worker in workers:
            answer = worker.run(steps=slice_)
            if i > 0:
                rates[worker.name].append(slice_ * args.batch / answer["seconds"])
                cpu[worker.name].append(1000 * answer["cpu"] / (slice_ * args.batch))
        if i > 0:
            now = ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items())
            print(f"  {net} round {i}/{args.pairs}: {now} images/s", flush=True)
    result: dict[str, Any] = {
        "batch": args.batch, "steps_per_slice": slice_, "steps": steps, "lr": args.lr, "latent": LATENT, "rates": rates, "cpu_ms": cpu, "loss": {},
    }  # fmt: skip
    for worker in workers:
        if worker.name != "pythae":
            worker.run(steps=1)  # past the last gate: fit returns
            assert worker.finished
        train, val = worker.ask("loss", steps=slice_)["loss"], worker.ask("evaluate", data=paths["held_out"])["loss"]
        result["loss"][worker.name] = {"last_slice": train, "held_out": val}
        worker.close()
    result["ratio"] = {
        name: _spread([a / b for a, b in zip(values, rates["pythae"], strict=True)]) for name, values in rates.items() if name != "pythae"
    }
    result["target"] = TARGETS[net]
    _print_speed(net, result)
    return result


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "min": min(values), "max": max(values)}


def _print_speed(net: str, result: dict[str, Any]) -> None:
    about = {"conv": "MNIST convolutional VAE", "mlp": "default MLP VAE"}[net]
    print(f"\nPythae's {about}, batch {result['batch']}, latent {LATENT}, Adam {result['lr']:g}: {result['steps']} steps each\n")
    print("| trainer | images/s (median) | ratio (median) | quartiles | range | CPU ms per image | loss, last slice | loss, held out |")
    print("|---|---|---|---|---|---|---|---|")
    for name, values in result["rates"].items():
        ratio, loss = result["ratio"].get(name), result["loss"][name]
        columns = ["1", "", ""]
        if ratio is not None:
            columns = [f"**{ratio['median']:.2f}**", f"{ratio['q1']:.2f} - {ratio['q3']:.2f}", f"{ratio['min']:.2f} - {ratio['max']:.2f}"]
        columns.append(f"{statistics.median(result['cpu_ms'][name]):.3f}")
        losses = f"{loss['last_slice']:.3f} | {loss['held_out']:.3f}"
        print(f"| {name} | {statistics.median(values):.0f} | {' | '.join(columns)} | {losses} |")
    reached = result["ratio"]["expost auto"]["median"]
    print(f"\naim {result['target']:g}x at the default settings: {reached:.2f}x\n", flush=True)


def quality(data: Any, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Slices of one recipe of expost and of Pythae's candidates in turn; samples of all under one extractor."""
    train, test = data.train, data.test
    extractor = classifier_extractor("mnist", train.x, train.labels, test.x, test.labels)
    real = extract(extractor, test.x)
    images = folder / "train.npy"
    np.save(images, train.x.numpy())
    common = {"data": str(images), "seed": args.seed, "threads": args.threads}
    options = {**common, "what": "quality", "seconds": args.seconds}
    workers = [Worker("expost", sys.executable, "_expost_side.py", options, folder)]
    chosen = {name: c for name, c in CANDIDATES.items() if not args.candidates or name in args.candidates}
    for name, candidate in chosen.items():
        for lr in args.pythae_lr:
            options = {**common, **candidate, "latent": LATENT, "batch": args.batch, "lr": lr, "epochs": 10_000}
            workers.append(Worker(f"{name} lr={lr:g}", pythae_python(), "_pythae_side.py", options, folder))
    scores: list[dict[str, Any]] = []

    def score(worker: Worker, sampler: str) -> None:
        path = folder / "samples.npy"
        answer = worker.ask("sample", sampler=sampler, n=args.samples, path=str(path), images=args.fit_images)
        fake = torch.from_numpy(np.load(path)).float()
        value = frechet_distance(extract(extractor, fake), real).value
        row = {
            "model": worker.name,
            "sampler": sampler,
            "trained": worker.trained,
            "steps": worker.steps,
            "fd": value,
            "fit": answer["seconds"],
        }
        scores.append(row)
        print(f"  {worker.name} + {sampler}: FD {value:.5f} after {worker.trained:.0f} s ({worker.steps} steps)", flush=True)

    slices = round(args.seconds / args.slice)
    checkpoints = {round(slices * part) for part in args.checkpoints}
    for i in range(1, slices + 1):
        for worker in workers:
            while worker.trained < min(i * args.slice, args.seconds) - 0.05 and not worker.finished:
                worker.run(seconds=min(i * args.slice, args.seconds) - worker.trained)
        for worker in workers[1:]:
            for sampler in chosen[worker.name.split(" lr=")[0]]["samplers"]:
                if i == slices or (i in checkpoints and sampler in ("normal", "gmm10")):
                    score(worker, sampler)
        print(f"  {i * args.slice:g} s of {args.seconds:g} s each", flush=True)
    while not workers[0].finished:
        workers[0].run(seconds=1)
    score(workers[0], "recipe")
    for worker in workers:
        worker.close()
    floor = frechet_distance(extract(extractor, train.x[: args.samples]), real).value
    ours = min(row["fd"] for row in scores if row["model"] == "expost")
    theirs = min((row for row in scores if row["model"] != "expost"), key=lambda row: row["fd"])
    result = {
        "extractor": str(extractor), "seconds": args.seconds, "samples": args.samples, "scores": scores, "expost": ours, "pythae": theirs,
        "ratio": theirs["fd"] / ours, "training_images": floor, "target": TARGETS["quality"],
    }  # fmt: skip
    print(f"\nFréchet distance of {args.samples} samples after {args.seconds:g} s of training each, {extractor}\n")
    print("| model | sampler | s | steps | FD | s to fit and sample |\n|---|---|---|---|---|---|")
    for row in sorted(scores, key=lambda row: row["fd"]):
        print(f"| {row['model']} | {row['sampler']} | {row['trained']:.0f} | {row['steps']} | {row['fd']:.5f} | {row['fit']:.0f} |")
    print(f"| {args.samples} training images | | | | {floor:.5f} | |")
    best = f"{theirs['model']} + {theirs['sampler']}"
    print(f"\nbest of Pythae ({best}) / expost: {result['ratio']:.2f} (aim {TARGETS['quality']:g})\n", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="expost.fit against Pythae 0.1.2")
    parser.add_argument("--data", help="folder of MNIST in parquet files (default: from the hub)")
    parser.add_argument("--what", nargs="+", choices=["conv", "mlp", "quality"], default=["conv", "mlp", "quality"])
    parser.add_argument("--batch", type=int, default=100, help="batch size on both sides (Pythae's default is 64)")
    parser.add_argument("--lr", type=float, default=1e-3, help="conv, mlp: Adam's learning rate on both sides (Pythae's default is 1e-4)")
    parser.add_argument("--pairs", type=int, default=9, help="conv, mlp: rounds that count")
    parser.add_argument("--steps", type=int, help="conv, mlp: steps per slice")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=80, help="quality: training time of each model")
    parser.add_argument("--slice", type=float, default=10, help="quality: seconds at a time")
    parser.add_argument("--samples", type=int, default=10_000, help="quality: samples per score")
    parser.add_argument("--fit-images", type=int, default=20_000, help="quality: training images Pythae's samplers are fitted to")
    parser.add_argument("--checkpoints", type=float, nargs="*", default=[0.5, 0.75], help="quality: Pythae is scored at these parts too")
    parser.add_argument("--candidates", nargs="*", help=f"quality: some of {', '.join(CANDIDATES)}")
    parser.add_argument("--pythae-lr", type=float, nargs="+", default=[1e-3], help="quality: learning rates tried on Pythae's side")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    args = parser.parse_args()
    if args.pairs < 2 or args.batch < 2:
        parser.error("--pairs and --batch must be at least 2")
    torch.set_num_threads(args.threads)
    data = load("mnist", path=args.data)
    results: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads, "cpu": torch.cpu.get_capabilities().get("cpu_name")}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for what in args.what:
            if what == "quality":
                results[what] = quality(data, args, Path(folder))
            else:
                results[what] = speed(what, data.train.x.numpy(), data.val.x[:2000].numpy(), args, Path(folder))
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
