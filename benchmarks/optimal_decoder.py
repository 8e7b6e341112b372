"""log q(z | x_n) of all training points: ``expost.posterior.aggregate.AggregatePosterior`` against a chunked logsumexp of a few lines of PyTorch.

    python benchmarks/optimal_decoder.py [--dims 16 50 128] [--pairs 7] [--threads 2] [--json out.json]

| side | what it does for every code | returns |
|---|---|---|
| ours | ``AggregatePosterior(q).query(z)``: pruned by an error bound in float32, the rest in float64 | log q(z), largest three weights, entropy, effective sample size |
| float32 | [z², z] times [-t/2, t m] in float32, ``logsumexp``, ``amax``, chunked over codes | log q(z), largest weight |
| float64 | the same in float64: equal accuracy, aim 2x | log q(z), largest weight |

60 000 posteriors as of a VAE, made here from a seed: per live dimension a standard deviation between 0.05 and 0.3, which varies by a tenth
between points, and means in ten clusters; dead dimensions have means near 0 and standard deviations near 1 (live: 12 of 16, 20 of 50, 32 of
128). 10 000 codes: half are means of held-out posteriors, half draws of N(0, I). All sides start from the float32 means and standard deviations,
what they derive from them is timed, and the chunks of the plain ones are as large as ours.

Each side has a process of its own, held to ``--threads`` processors. The first call warms up; the second gives the peak memory above what
the process held (at most 1 GB is allowed); then the sides take turns (A B C A B C ...). Reported: the median ratio within a turn with its quartiles, and the largest error
over ``--judged`` codes against differences in float64 (log q, and the largest weight relative to itself).

    python benchmarks/optimal_decoder.py --widen 10   wide posteriors: little can be pruned
    python benchmarks/optimal_decoder.py --smoke      small, for seconds: does it run, do the numbers agree
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from expost.posterior.aggregate import AggregatePosterior
from expost.seeds import generator
from metrics import resident

SIDES = ("ours", "float32", "float64")
LIVE = {16: 12, 50: 20, 128: 32}
AIM, MEMORY = 2.0, 2**30
CHUNK = 256
#: log q(z) and the largest weight of each code.
Answer = tuple[Tensor, Tensor]


def posteriors(n: int, d: int, part: str, widen: float = 1.0) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (n, d) float32; ``train`` and ``held-out`` ones come from the same distribution."""
    shared, own = generator("optimal-decoder", d), generator("optimal-decoder", d, part)
    live = LIVE.get(d, max(1, d // 3))
    width = torch.exp(math.log(0.05) + torch.rand(live, generator=shared) * math.log(6))
    centres = torch.randn(10, live, generator=shared)
    label = torch.randint(10, (n,), generator=own)
    mean, std = 0.01 * torch.randn(n, d, generator=own), 1 - 0.01 * torch.rand(n, d, generator=own)
    mean[:, :live] = 0.8 * centres[label] + 0.6 * torch.randn(n, live, generator=own)
    std[:, :live] = widen * width * torch.exp(0.1 * torch.randn(n, live, generator=own))
    return mean, std


def queries(m: int, d: int) -> Tensor:
    held_out = posteriors((m + 1) // 2, d, "held-out")[0]
    return torch.cat([held_out, torch.randn(m // 2, d, generator=generator("optimal-decoder", d, "prior"))])


def ours(mean: Tensor, std: Tensor, z: Tensor) -> Answer:
    found = AggregatePosterior(Independent(Normal(mean, std, validate_args=False), 1)).query(z)
    return found.log_prob, found.largest


def plain(dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], Answer]:
    def call(mean: Tensor, std: Tensor, z: Tensor) -> Answer:
        m, t = mean.to(dtype), std.to(dtype).pow(-2)
        a = torch.cat([-0.5 * t, t * m], 1).T
        b = -0.5 * (t * m.square()).sum(1) - std.to(dtype).log().sum(1) - 0.5 * m.shape[1] * math.log(2 * math.pi)
        totals, tops = [], []
        for part in z.to(dtype).split(CHUNK):
            scores = torch.addmm(b, torch.cat([part.square(), part], 1), a)
            totals.append(torch.logsumexp(scores, 1))
            tops.append(scores.amax(1))
        total = torch.cat(totals)
        return total - math.log(len(mean)), (torch.cat(tops) - total).exp()

    return call


def exactly(mean: Tensor, std: Tensor, z: Tensor) -> Answer:
    """From differences in float64, one code at a time."""
    m, s = mean.double(), std.double()
    constant = -s.log().sum(1) - 0.5 * m.shape[1] * math.log(2 * math.pi)
    scores = torch.stack([constant - 0.5 * ((code - m) / s).square().sum(1) for code in z.double()])
    total = torch.logsumexp(scores, 1)
    return total - math.log(len(m)), (scores.amax(1) - total).exp()


def worker(options: dict[str, Any]) -> None:
    """Obey orders at the gate: ``measure`` a call, once with its ``peak`` memory, or ``judge`` its errors."""
    from _gate import Gate

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options["threads"]])
    torch.set_num_threads(options["threads"])
    call = {"ours": ours, "float32": plain(torch.float32), "float64": plain(torch.float64)}[options["side"]]
    mean, std = posteriors(options["n"], options["d"], "train", options["widen"])
    z = queries(options["m"], options["d"])

    def measure(peak: bool = False) -> dict[str, Any]:
        if peak:
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # forget the peak so far, where that is allowed
        held = resident()
        began, cpu = time.perf_counter(), time.process_time()
        call(mean, std, z)
        answer: dict[str, Any] = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        return {**answer, "peak": max(resident("VmHWM") - held, 0)} if peak else answer

    def judge(judged: int) -> dict[str, Any]:
        chosen = torch.linspace(0, len(z) - 1, judged).long()
        (log_prob, largest), (truth, top) = call(mean, std, z), exactly(mean, std, z[chosen])
        return {
            "log_prob": float((log_prob[chosen].double() - truth).abs().max()),
            "largest": float((largest[chosen].double() / top - 1).abs().max()),
            "perplexity_one": float((largest > 0.5).double().mean()),
        }

    gate = Gate({"measure": measure, "judge": judge})
    gate.rest()


def compare(d: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from train_vs_pythae import Worker

    common = {"d": d, "n": args.n, "m": args.queries, "threads": args.threads, "widen": args.widen}
    sides = {side: Worker(f"{side} {d}", sys.executable, "optimal_decoder.py", {**common, "side": side}, folder) for side in SIDES}
    errors = {side: w.ask("judge", judged=min(args.judged, args.queries)) for side, w in sides.items()}
    peaks = {side: w.ask("measure", peak=True)["peak"] for side, w in sides.items()}
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(args.pairs):
        for side, w in sides.items():
            rows[side].append(w.ask("measure"))
    for w in sides.values():
        w.close()
    found: dict[str, Any] = {"peak_bytes": peaks, "errors": errors, "rows": rows, "ratio": {}, "cpu_ratio": {}}
    print(f"{d} dimensions: {args.queries} codes, {args.n} posteriors, {args.pairs} turns, {args.threads} threads")
    for side in SIDES:
        seconds = statistics.median(r["seconds"] for r in rows[side])
        print(
            f"  {side:8} {seconds:7.2f} s, {peaks[side] / 2**20:5.0f} MB above the data; "
            f"error of log q {errors[side]['log_prob']:.1e}, of the largest weight {errors[side]['largest']:.1e}"
        )
    for side in SIDES[1:]:
        for clock, key in (("seconds", "ratio"), ("cpu", "cpu_ratio")):
            ratios = [b[clock] / a[clock] for a, b in zip(rows["ours"], rows[side], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
            found[key][side] = [quartiles[1], quartiles[0], quartiles[2]]
        elapsed, cpu = found["ratio"][side], found["cpu_ratio"][side]
        print(f"  {side} / ours: {elapsed[0]:.2f} (quartiles {elapsed[1]:.2f} to {elapsed[2]:.2f}), of processor time {cpu[0]:.2f}")
    found["met"] = found["ratio"]["float64"][0] >= AIM and peaks["ours"] <= MEMORY and errors["ours"]["log_prob"] <= 1e-9
    print(f"  {errors['ours']['perplexity_one']:.0%} of the codes belong to one posterior by more than half")
    print(f"  aim {AIM:g}x at equal accuracy, at most 1 GB: {'met' if found['met'] else 'not met'}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 50, 128])
    parser.add_argument("--n", type=int, default=60_000, help="posteriors")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--judged", type=int, default=200)
    parser.add_argument(
        "--widen", type=float, default=1.0, help="factor of the live standard deviations: the wider, the less can be pruned"
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.n, args.queries, args.judged, args.pairs = 3000, 500, 50, 3
    results: dict[str, Any] = {"n": args.n, "queries": args.queries, "threads": args.threads, "pairs": args.pairs, "widen": args.widen}
    with tempfile.TemporaryDirectory() as folder:
        for d in args.dims:
            results[str(d)] = compare(d, args, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        worker(json.loads(Path(sys.argv[1]).read_text()))
    else:
        main()
