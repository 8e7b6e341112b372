"""Metrics on features against their reference implementations: time, peak memory, and whether the numbers agree.

    python benchmarks/metrics.py [--prd-reference prd_score.py] [--what fd moments prd neighbours] [--json out.json]

| what | ours | theirs | aim |
|---|---|---|---|
| fd | ``frechet.frechet_distance`` | ``numpy.cov`` and ``scipy.linalg.sqrtm(S1 @ S2)`` in float64, as in pytorch-fid | 10x |
| moments | the same from the moments of both sets (``FeatureStats``), as where they are kept | the same from means and covariances | - |
| prd | ``prd.prd`` | ``compute_prd_from_embedding`` and ``prd_to_max_f_beta_pair`` of the authors, with their defaults | 30x |
| neighbours | ``neighbours.neighbour_panel`` with k = 5 | ``prdc.compute_prdc`` with k = 5 | 3x, a fifth of the memory |

The authors' code of prd is in no package: give its file (prd_score.py of github.com/msmsajjadi/precision-recall-distributions) with
``--prd-reference``, or that row is left out.

Both sides get the same float32 features: 10 000 generated against 10 000 real ones of 2 048 dimensions, like Inception's in that they are not
negative, often zero, correlated and heavy-tailed. Each side has a process of its own with ``--threads`` threads, held to as many processors.
The first call warms up and gives the peak memory above what the process held before it (inputs, libraries); then the sides take turns
(A B A B ...), each pair with a seed of its own. Reported: the median ratio within pairs with its range, of elapsed and of processor time. A
slow reference makes long pairs, which need fewer repetitions: ``--pairs`` and, for prd, ``--prd-pairs``.

    python benchmarks/metrics.py --smoke      small, for seconds: does it run, do the numbers agree
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

AIMS = {"fd": 10.0, "moments": None, "prd": 30.0, "neighbours": 3.0}
MEMORY_AIM = {"neighbours": 5.0}
Call = Callable[[np.ndarray, np.ndarray, int], dict[str, float]]


def features(n: int, d: int, which: str) -> np.ndarray:
    """(n, d) float32 like pool_3 of Inception: rectified linear mixtures of 256 factors with Student-t rows and log-normal columns.

    ``generated`` ones have somewhat different mixtures, thresholds and tails than ``real`` ones.
    """
    shared, own = np.random.default_rng([d, 0]), np.random.default_rng([n, d, len(which)])
    loadings, other = (shared.standard_normal((256, d), np.float32) / 16 for _ in range(2))
    gain, threshold = np.exp(shared.normal(-1, 0.5, d)).astype(np.float32), shared.normal(0.2, 0.5, d).astype(np.float32)
    tails = 6.0
    if which == "generated":
        loadings, threshold, tails = 0.95 * loadings + 0.3 * other, threshold + np.float32(0.05), 8.0
    out = np.empty((n, d), np.float32)
    for rows in np.array_split(out, max(1, n // 1000)):
        heavy = np.sqrt(tails / own.chisquare(tails, (len(rows), 1))).astype(np.float32)
        mixed = own.standard_normal((len(rows), 256), np.float32) @ loadings + 0.5 * own.standard_normal((len(rows), d), np.float32)
        rows[:] = np.maximum(heavy * mixed - threshold, 0) * gain
    return out


# -- the two sides, each in a process of its own ---------------------------------------------------------------------------------------------


def ours(what: str) -> Call:
    import torch

    if what == "moments":
        from expost.evaluate.metrics.frechet import FeatureStats, frechet_distance

        @functools.cache
        def stats(n: int, d: int, which: str) -> FeatureStats:
            return FeatureStats.from_features(torch.from_numpy(features(n, d, which)))

        return lambda generated, real, seed: {
            "FD": float(frechet_distance(stats(*generated.shape, "generated"), stats(*real.shape, "real")))
        }

    def call(generated: np.ndarray, real: np.ndarray, seed: int) -> dict[str, float]:
        a, b = torch.from_numpy(generated), torch.from_numpy(real)
        if what == "fd":
            from expost.evaluate.metrics.frechet import frechet_distance

            return {"FD": float(frechet_distance(a, b))}
        if what == "prd":
            from expost.evaluate.metrics.prd import prd

            return {name: float(result) for name, result in prd(a, b, seed=seed).results().items()}
        from expost.evaluate.metrics.neighbours import neighbour_panel

        panel = neighbour_panel(a, b, k=5, k_coverage=5)
        return {name: float(getattr(panel, name)) for name in ("precision", "recall", "density", "coverage")}

    return call


def theirs(what: str, prd_reference: str | None) -> Call:
    if what in ("fd", "moments"):
        from scipy import linalg

        def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x = x.astype(np.float64)
            return x.mean(0), np.cov(x, rowvar=False)

        @functools.cache
        def kept(n: int, d: int, which: str) -> tuple[np.ndarray, np.ndarray]:
            return moments(features(n, d, which))

        def distance(generated: np.ndarray, real: np.ndarray, seed: int) -> dict[str, float]:
            if what == "fd":
                (mean_a, cov_a), (mean_b, cov_b) = moments(generated), moments(real)
            else:
                (mean_a, cov_a), (mean_b, cov_b) = kept(*generated.shape, "generated"), kept(*real.shape, "real")
            root = linalg.sqrtm(cov_a @ cov_b)
            return {"FD": float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root).real)}

        return distance
    if what == "prd":
        assert prd_reference is not None
        spec = importlib.util.spec_from_file_location("prd_score", prd_reference)
        assert spec is not None
        assert spec.loader is not None
        authors = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(authors)

        def curve(generated: np.ndarray, real: np.ndarray, seed: int) -> dict[str, float]:
            np.random.seed(seed)  # noqa: NPY002 - what their clustering draws from
            f8, f1_8 = authors.prd_to_max_f_beta_pair(*(part.clip(0, 1) for part in authors.compute_prd_from_embedding(generated, real)))
            return {"f8": float(f8), "f1_8": float(f1_8)}

        return curve
    from prdc import compute_prdc

    return lambda generated, real, seed: {k: float(v) for k, v in compute_prdc(real, generated, nearest_k=5).items()}


def resident(what: str = "VmRSS") -> int:
    """Bytes of memory this process holds, or has held at most (``VmHWM``).

    Not ``ru_maxrss``: in a new process that begins at the memory of the one that started it.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what)) * 1024


def worker(options: dict[str, Any]) -> None:
    """Obey orders at the gate: ``measure`` a call, once with its ``peak`` memory."""
    from _gate import Gate

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options["threads"]])
    if options["side"] == "ours":
        import torch

        torch.set_num_threads(options["threads"])
    call = ours(options["what"]) if options["side"] == "ours" else theirs(options["what"], options["prd_reference"])
    generated, real = (np.load(options[name]) for name in ("generated", "real"))
    gate = Gate({})  # from here on, what libraries print goes to the log
    call(generated[:100, :8].copy(), real[:100, :8].copy(), 0)  # imports, and threads of the libraries
    if options["what"] == "moments":
        call(generated, real, 0)  # from now on, moments are given

    def measure(seed: int, peak: bool = False) -> dict[str, Any]:
        if peak:
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # forget the peak so far, where that is allowed
            held = resident()
        began, cpu = time.perf_counter(), time.process_time()
        values = call(generated, real, seed)
        answer: dict[str, Any] = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "values": values}
        if peak:
            answer["peak"] = max(resident("VmHWM") - held, 0)
        return answer

    gate.handlers = {"measure": measure}
    gate.rest()


# -- the comparison --------------------------------------------------------------------------------------------------------------------------


def spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def compare(what: str, pairs: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from train_vs_pythae import Worker

    common = {
        "what": what, "threads": args.threads, "prd_reference": str(args.prd_reference.resolve()) if args.prd_reference else None,
        "generated": str(folder / "generated.npy"), "real": str(folder / "real.npy"),
    }  # fmt: skip
    sides = {side: Worker(f"{side} {what}", sys.executable, "metrics.py", {**common, "side": side}, folder) for side in ("ours", "theirs")}
    peaks = {side: w.ask("measure", seed=0, peak=True)["peak"] / 2**20 for side, w in sides.items()}
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for pair in range(pairs):
        for side, w in sides.items():
            rows[side].append(w.ask("measure", seed=args.seed + pair))
    for w in sides.values():
        w.close()
    found: dict[str, Any] = {
        clock: {
            "ratio": spread([b[clock] / a[clock] for a, b in zip(rows["ours"], rows["theirs"], strict=True)]),
            **{side: spread([r[clock] for r in rows[side]]) for side in rows},
        }
        for clock in ("seconds", "cpu")
    }
    found |= {"pairs": pairs, "peak_megabytes": peaks, "peak_ratio": peaks["theirs"] / max(peaks["ours"], 1e-3), "values": {}}
    ratio, cpu = found["seconds"]["ratio"], found["cpu"]["ratio"]
    print(f"{what}: {pairs} pair{'s' * (pairs != 1)}")
    print(f"  ours {found['seconds']['ours'][0]:.3g} s, theirs {found['seconds']['theirs'][0]:.3g} s (medians)")
    print(f"  ratio {ratio[0]:.2f} (range {ratio[1]:.2f} to {ratio[2]:.2f}), of processor time {cpu[0]:.2f} ({cpu[1]:.2f} to {cpu[2]:.2f})")
    print(f"  peak memory above the inputs: ours {peaks['ours']:.0f} MB, theirs {peaks['theirs']:.0f} MB, ratio {found['peak_ratio']:.2f}")
    for name in rows["ours"][0]["values"]:
        a, b = ([r["values"][name] for r in rows[side]] for side in ("ours", "theirs"))
        found["values"][name] = {"ours": a, "theirs": b}
        apart = max(abs(x - y) for x, y in zip(a, b, strict=True))
        if what == "prd":  # both are random: k-means
            each = [f"{statistics.fmean(v):.4f}" + (f" ± {statistics.stdev(v):.4f} between pairs" if pairs > 1 else "") for v in (a, b)]
            print(f"  {name}: ours {each[0]}, theirs {each[1]}")
        else:
            relative = f", relative {apart / abs(b[0]):.1e}" if b[0] else ""
            print(f"  {name}: ours {a[0]:.10g}, theirs {b[0]:.10g}; at most {apart:.1e} apart{relative}")
    aim = AIMS[what]
    if aim is None:
        return found
    met = ratio[0] >= aim and found["peak_ratio"] >= MEMORY_AIM.get(what, 0)
    memory = f" and a {MEMORY_AIM[what]:g}th of the memory" if what in MEMORY_AIM else ""
    print(f"  aim {aim:g}x{memory}: {'met' if met else 'not met'}", flush=True)
    return {**found, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--what", nargs="+", default=[*AIMS], choices=[*AIMS])
    parser.add_argument("--n", type=int, default=10_000, help="rows of each set")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prd-pairs", type=int, default=3, help="the authors' code takes minutes")
    parser.add_argument("--prd-reference", type=Path, help="the authors' prd_score.py")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.n, args.dim, args.pairs, args.prd_pairs = 500, 64, 3, 2
    if args.prd_reference and not args.prd_reference.is_file():
        parser.error(f"there is no file {args.prd_reference}")
    print(f"{args.n} generated against {args.n} real features of {args.dim} dimensions, {args.threads} threads")
    results: dict[str, Any] = {"n": args.n, "dim": args.dim, "threads": args.threads, "seed": args.seed}
    with tempfile.TemporaryDirectory() as folder:
        for which in ("generated", "real"):
            np.save(Path(folder, f"{which}.npy"), features(args.n, args.dim, which))
        for what in args.what:
            if what == "prd" and args.prd_reference is None:
                print("prd: left out, because the authors' code is in no package: give its file with --prd-reference")
                continue
            results[what] = compare(what, args.prd_pairs if what == "prd" else args.pairs, args, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        worker(json.loads(Path(sys.argv[1]).read_text()))
    else:
        main()
