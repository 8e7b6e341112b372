"""Every recipe, interrupted by SIGINT, SIGTERM and SIGKILL and resumed: are the weights those of an uninterrupted run, bit for bit?

    python benchmarks/resume_kills.py                              all recipes, three signals each; prints a table
    python benchmarks/resume_kills.py ghosh2020/rae --signals KILL      a quick look

For each recipe an uninterrupted run of ``expost train`` with the networks of the ``cpu`` budget, and for each signal a run that gets it at a
random moment after its first checkpoint exists, and is resumed with ``--resume``: each in a fresh interpreter. Compared are all tensors of
``model.safetensors`` and all rows of ``history.csv`` (but for the clock). A run that ended before its signal, or that did not go on from a
checkpoint, does not count as resumed and is tried again.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "KILL": signal.SIGKILL}
POINTS = "8gaussians"


def start(recipe: str, data: str, folder: Path, steps: int, *more: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]),
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: a machine that does other things too stays usable
    }
    line = [
        sys.executable,
        "-c",
        "import sys; from expost.cli import main; sys.exit(main())",
        "train",
        recipe,
        "--data",
        data,
        "--device",
        "cpu",
    ]
    chosen = {"training.steps": steps, "training.checkpoint_every": 0.02, "training.log_every": 7, "training.batch_size": 32}
    line += [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
    return subprocess.Popen([*line, "--out", str(folder), *more], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"a training ended with exit status {process.returncode}: {said.decode()[-500:]}")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def checkpoint_step(folder: Path) -> int | None:
    from expost.system.files import load_tensors

    file = folder / "checkpoint.safetensors"
    return int(load_tensors(file, "the checkpoint")[1]["step"]) if file.is_file() else None


def trial(whole: Path, killed: Path, recipe: str, data: str, name: str, options: argparse.Namespace, chance: random.Random) -> str:
    """ "identical", or what differs; "" if the run ended before its signal came."""
    import torch

    from expost.system.files import load_tensors

    process = start(recipe, data, killed, options.steps)
    while not (killed / "checkpoint.safetensors").is_file():
        if process.poll() is not None:
            return ""
        time.sleep(0.001)
    time.sleep(chance.random() * 0.05)
    process.send_signal(SIGNALS[name])
    process.communicate()
    at = checkpoint_step(killed)
    if at is None or (killed / "model.safetensors").is_file() or process.returncode == 0:
        return ""
    finish(start(recipe, data, killed, options.steps, "--resume"))
    a, b = (load_tensors(f / "model.safetensors", "the weights")[0] for f in (whole, killed))
    faults = []
    if a.keys() != b.keys() or not all(torch.equal(a[k], b[k]) for k in a):
        faults.append(f"weights differ by up to {max(float((a[k].double() - b[k].double()).abs().max()) for k in a):.3g}")
    if rows(whole) != rows(killed):
        faults.append("history differs")
    return f"{', '.join(faults) or 'identical'} (from step {at})"


def main() -> None:
    sys.path.insert(0, str(HERE.parents[1] / "src"))
    from expost.papers import RECIPES, find

    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("recipes", nargs="*", default=sorted(RECIPES))
    parser.add_argument("--signals", nargs="+", choices=sorted(SIGNALS), default=["INT", "TERM", "KILL"])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    identical = resumed = asked = 0
    for recipe in options.recipes:
        data = POINTS if find(recipe).data == POINTS else "digits"
        chance = random.Random(recipe)
        root = Path(tempfile.mkdtemp(prefix="resume-kills-"))
        try:
            finish(start(recipe, data, root / "whole", options.steps))
            verdicts = []
            for name in options.signals:
                asked += 1
                verdict = ""
                for again in range(5):
                    verdict = trial(root / "whole", root / f"{name}{again}", recipe, data, name, options, chance)
                    if verdict:
                        break
                resumed += bool(verdict)
                identical += verdict.startswith("identical")
                verdicts.append(f"{name} {verdict or 'never interrupted in time: choose more --steps'}")
            print(f"{recipe}: {'; '.join(verdicts)}", flush=True)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    print(f"resumed from a checkpoint: {resumed} of {asked}; bit-identical: {identical} of {resumed}")
    sys.exit(identical != asked)


if __name__ == "__main__":
    main()
