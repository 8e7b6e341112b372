"""Twenty SIGKILLs at random steps, each resumed: are the final weights those of an uninterrupted run, bit for bit?

    python benchmarks/resume_kills.py                 20 trials, two threads; prints the count
    python benchmarks/resume_kills.py --trials 2      a quick look

Each trial has its own seed and three fresh interpreters: an uninterrupted reference; a run that is killed with SIGKILL once it has reached
a random step, at a random moment within it; and its resumption. Compared are all tensors of ``model.safetensors`` and all rows of the
history (but for the clock). The run is a batch-normalised convolutional VAE with learned decoder variance on 28x28 images, batches of 100,
with best weights by validation; everything else is ``Training``'s defaults, save for the interval between checkpoints: 30 seconds by
default, which is longer than this run, so that a killed one would simply start anew; here it is ``--checkpoint-every`` seconds.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


def train(folder: Path, seed: int, threads: int, steps: int, interval: float) -> None:
    """One process: start or resume, telling each step through a memory-mapped file beside the folder."""
    import torch
    from torch import nn

    import expost
    from expost import heads
    from expost.density import StandardNormal
    from expost.files import write_json
    from expost.seeds import generator, seeded

    torch.set_num_threads(threads)
    beat = folder.with_suffix(".step")
    beat.write_bytes(struct.pack("q", -1)) if not beat.exists() else None
    with beat.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 8)

    class Watched(expost.Objective):
        """The objective, which also tells the step."""

        def __call__(self, model: Any, x: Any) -> Any:
            return expost.ELBO()(model, x)

        def at(self, step: int) -> Watched:
            memory[:8] = struct.pack("q", step)
            return self

    with seeded("init", seed):
        encoder_head, decoder_head = heads.Diagonal(), heads.Gaussian("shared", torch.sigmoid)
        encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 49, encoder_head.size(16)),
        )  # fmt: skip
        decoder = nn.Sequential(
            nn.Linear(16, 32 * 49), nn.Unflatten(1, (32, 7, 7)), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1),
        )  # fmt: skip
        model = expost.Autoencoder(
            expost.Conditional(encoder, encoder_head, condition_dims=3), expost.Conditional(decoder, decoder_head, event_dims=3),
            StandardNormal(16),
        )  # fmt: skip
    # smooth random images: blobs at random places
    g = generator("blobs", seed)
    centre, grid = 6 + 16 * torch.rand(2300, 2, 1, 1, generator=g), torch.arange(28.0)
    squared = (grid[None, :, None] - centre[:, 0]).square() + (grid[None, None, :] - centre[:, 1]).square()
    x = (255 * torch.exp(-squared / 30))[:, None].to(torch.uint8)
    training = expost.Training(steps=steps, checkpoint_every=interval, best=True)
    history = expost.fit(model, Watched(), x[:2000], val=x[2000:], training=training, seed=seed, out=folder, resume=True, device="cpu")
    write_json(folder / "rows.json", [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows])


def start(folder: Path, seed: int, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]),
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: a machine that does other things too stays usable
    }
    command = [sys.executable, str(HERE), "--child", str(folder), "--seed", str(seed), "--threads", str(options.threads)]
    command += ["--steps", str(options.steps), "--checkpoint-every", str(options.checkpoint_every)]
    return subprocess.Popen(command, env=environment)


def finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise SystemExit(f"a training ended with exit status {process.returncode}: see its message above")


def reached(folder: Path) -> int:
    beat = folder.with_suffix(".step")
    data = beat.read_bytes() if beat.exists() else b""
    return int(struct.unpack("q", data)[0]) if len(data) == 8 else -1


def trial(root: Path, number: int, options: argparse.Namespace) -> bool:
    import torch

    from expost.files import load_tensors

    chance = random.Random(number)
    whole, killed = root / "whole", root / "killed"
    finish(start(whole, number, options))
    target = chance.randint(options.steps // 20, options.steps - options.steps // 20)
    process = start(killed, number, options)
    while reached(killed) < target:
        if process.poll() is not None:
            raise SystemExit("the run ended before it could be killed")
        time.sleep(0.0005)
    time.sleep(chance.random() * 0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode != -signal.SIGKILL:
        raise SystemExit("the run ended before it could be killed: choose more steps")
    at = reached(killed)
    checkpoint = killed / "checkpoint.safetensors"
    saved = load_tensors(checkpoint, "the checkpoint")[1]["step"] if checkpoint.exists() else 0
    finish(start(killed, number, options))
    a, b = (load_tensors(f / "model.safetensors", "the weights")[0] for f in (whole, killed))
    same = a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    rows = json.loads((whole / "rows.json").read_text()) == json.loads((killed / "rows.json").read_text())
    verdict = (
        "identical" if same and rows else f"DIFFERENT (weights {'same' if same else 'differ'}, history {'same' if rows else 'differs'})"
    )
    print(f"trial {number + 1}: killed in step {at} of {options.steps}, resumed from step {saved}: {verdict}", flush=True)
    return same and rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--checkpoint-every", type=float, default=0.5, help="seconds")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        train(options.child, options.seed, options.threads, options.steps, options.checkpoint_every)
        return
    sys.path.insert(0, str(HERE.parents[1] / "src"))
    identical = 0
    for number in range(options.trials):
        root = Path(tempfile.mkdtemp(prefix="resume-kills-"))
        try:
            identical += trial(root, number, options)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    print(f"bit-identical after SIGKILL and resume: {identical} of {options.trials}")
    sys.exit(identical != options.trials)


if __name__ == "__main__":
    main()
