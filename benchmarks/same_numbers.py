"""What must not change when code moves: everything that has a name, and numbers and bytes of small runs on digits. Run it before and after, and compare.

    python benchmarks/same_numbers.py > after.txt
    git worktree add ../before COMMIT && python benchmarks/same_numbers.py --source ../before/src > before.txt
    diff before.txt after.txt

Four minutes on one core. Printed: what `expost list` and `expost claims --list` know; hashes of weights, recipes, densities, samples and a compressed
file; tables of scores, of a diagnosis, a likelihood, claims and two tables of papers. All are functions of the seed on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CPU = ["--device", "cpu"]
SMOKE = ["--data", "digits", "--budget", "smoke"]
RECIPES = (
    "ghosh2020/rae-l2", "ghosh2020/wae", "dai2019/two-stage", "manoj2018/omega-vae", "tomczak2018/vampprior", "yu2020/bits-back-nested"
)  # fmt: skip
METRICS = ["--metrics", "fd", "kid", "prd", "neighbours", "memorisation", "fld"]
RAE, STAGE, CODER = (RECIPES[i].replace("/", "-") for i in (0, 2, 5))
#: Commands whose output is printed, but for lines that say where something was written.
SHOWN = (
    ["list"],
    ["claims", "--list"],
    ["evaluate", RAE, "--extractor", "random", "--density", "gmm:3", "--n", "100", *METRICS, *CPU],
    ["evaluate", RAE, "--extractor", "pixels", "--density", "gmm:3", "--n", "100", "--quirks", "stretch,eight-bit", *CPU],
    ["diagnose", STAGE, "--n", "100", *CPU],
    ["likelihood", STAGE, "--n", "20", *CPU],
    *(["claims", name, *SMOKE, "--runs", "lab"] for name in ("E1", "C13", "C18", "E11", "E12")),
    ["reproduce", "ghosh2020/table1", *SMOKE, "--runs", "lab", "--out", "table1"],
    ["reproduce", "dai2019/table1", *SMOKE, "--runs", "lab", "--out", "dai-table1"],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path(__file__).resolve().parents[1] / "src")
    source = parser.parse_args().source.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": f"{name}/cache",
            "EXPOST_QUIET": "1",
        }

        def expost(*arguments: str, must: bool = True) -> str:
            command = [sys.executable, "-m", "expost", *arguments]
            return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=must).stdout

        def show(what: str, data: bytes) -> None:
            print(what, hashlib.sha256(data).hexdigest()[:16], flush=True)

        for recipe in RECIPES:
            run = folder / recipe.replace("/", "-")
            expost("train", recipe, *SMOKE, *CPU, "--out", str(run))
            said = json.loads((run / "recipe.json").read_text())
            show(f"{recipe} {said['identity']} {said['checksum']}", (run / "model.safetensors").read_bytes())
        expost("density", RAE, "gmm:3", "gaussian", "kde", "flow", "stage", "mean-stage", *CPU)
        for file in sorted((folder / RAE / "densities").iterdir()):
            data = file.read_bytes()
            show(file.name, data[8 + int.from_bytes(data[:8], "little") :])  # the tensors
        expost("sample", RAE, "--density", "gmm:3", "--n", "5", "--out", "samples.npz", *CPU)
        with np.load(folder / "samples.npz") as arrays:
            show("samples", arrays["images"].tobytes())
        expost("compress", CODER, "--n", "30", "--no-peers", "-o", "a.xpz")
        show("compressed", (folder / "a.xpz").read_bytes())
        for arguments in SHOWN:
            print("$ expost", *arguments)  # claims and tables that fail at this budget end with status 1
            lines = expost(*arguments, must=False).replace(name, "").splitlines()
            print("\n".join(line for line in lines if not line.startswith("wrote")), flush=True)


if __name__ == "__main__":
    main()
