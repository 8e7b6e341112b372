"""Distances to the 20 nearest of n images, as the intrinsic dimension needs them, against scikit-learn's brute-force search in float64.

    python benchmarks/dimension.py [--n 4000] [--side 64] [--pairs 3] [--data FOLDER] [--json out.json]

Both sides get the same float32 images (n, 3 side²), of a data set or smooth random ones, and one thread; they take turns (A B A B ...).
Reported: the median of processor time (user and system) and of elapsed time, their ratios within pairs, and the largest relative difference
of the distances, which is rounding: scikit-learn takes |a|² - 2ab + |b|², in which small distances lose digits; ours are sums of squared differences.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

K = 20


def images(n: int, side: int, data: str | None) -> Tensor:
    """(n, 3 side²) float32 in [0, 1]."""
    from expost.seeds import permutation
    from expost.tensors import unit

    if data is not None:
        from expost.data import load

        x = load(data).train.x
        return unit(x[permutation(len(x), "benchmark", 0)[:n]]).flatten(1)
    coarse = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fine = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))
    return (0.5 + 0.2 * torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear") + 0.02 * fine).clamp(0, 1).flatten(1)


def ours(x: Tensor) -> Tensor:
    from expost.diagnose.codes.dimension import nearest_distances

    return nearest_distances(x, K)


def theirs(x: Tensor) -> Tensor:
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(x.double().numpy()).kneighbors()[0]
    return torch.from_numpy(found)


def cost(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float, float]:
    processor, elapsed = time.process_time(), time.perf_counter()
    found = run(x)
    return found, time.process_time() - processor, time.perf_counter() - elapsed


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--n", type=int, default=4000)
    options.add_argument("--side", type=int, default=64)
    options.add_argument("--pairs", type=int, default=3)
    options.add_argument("--data")
    options.add_argument("--json", type=Path)
    given = options.parse_args()

    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    x = images(given.n, given.side, given.data)
    small = x[: max(100, given.n // 20)]
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    worst = 0.0
    with threadpool_limits(1):
        ours(small), theirs(small)
        for _ in range(given.pairs):
            found = {}
            for name, run in (("ours", ours), ("theirs", theirs)):
                found[name], processor, elapsed = cost(run, x)
                seconds[name].append((processor, elapsed))
            worst = max(worst, float(((found["ours"] - found["theirs"]).abs() / found["ours"].clamp_min(1e-12)).max()))
    result = {"n": len(x), "dimensions": x.shape[1], "pairs": given.pairs, "largest relative difference": worst}
    for i, kind in enumerate(("processor", "elapsed")):
        for name, runs in seconds.items():
            result[f"{name}, {kind} seconds"] = round(statistics.median(run[i] for run in runs), 2)
        ratios = [b[i] / a[i] for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
        result[f"{kind} ratio"] = [round(f(ratios), 2) for f in (statistics.median, min, max)]
    for name, value in result.items():
        print(f"{name}: {value}")
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
