"""What importing costs: `import expost` with its main names against `import torch`, and the time to the help text.

Both sides have bytecode, are started fresh and alternate (A B A B ...); medians of the pairs' differences. Aims: at most 0.3 s above torch,
`expost --help` within 0.5 s.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

NAMES = "import expost; expost.fit; expost.Autoencoder; expost.GMM; expost.RAE; expost.Training"


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    pairs = parser.parse_args().pairs
    python = sys.executable
    sides = {
        "import torch": (python, "-c", "import torch"),
        "import expost": (python, "-c", "import torch, expost"),
        "import expost, main names": (python, "-c", f"import torch; {NAMES}"),
        "expost --help": (python, "-m", "expost", "--help"),
    }
    for command in sides.values():
        seconds(*command)
    times = {name: [] for name in sides}
    for _ in range(pairs):
        for name, command in sides.items():
            times[name].append(seconds(*command))
    for name, values in times.items():
        extra = [v - t for v, t in zip(values, times["import torch"], strict=True)]
        above = "" if name in ("import torch", "expost --help") else f", above torch {statistics.median(extra):+.3f} s"
        print(f"{name:28} median {statistics.median(values):.3f} s (from {min(values):.3f} to {max(values):.3f}){above}")


if __name__ == "__main__":
    main()
