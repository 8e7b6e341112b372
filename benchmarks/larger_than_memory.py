"""A data set that does not fit into memory: trained and evaluated under a limit, and the speed of mapped against in-memory data.

    python benchmarks/larger_than_memory.py [--gigabytes 6] [--limit 2] [--folder FOLDER]

Two parts, each in processes of their own.

1. An array of ``--gigabytes`` random 64x64 RGB images is written to disk; ``ghosh2020/rae`` trains on it for some hundred steps, codes of all of
   it are computed and a Gaussian is fitted, inside a memory control group of ``--limit`` GB (Linux, as root: version 1 or 2). The group's peak counts the pages
   of mapped files too; they are given back when room is needed, so a peak at the limit is expected and what matters is that the process lives.
   Its own (anonymous) memory is printed beside it. Where there is no control group, only the latter is measured, and it is said.
2. On data that fit, ``ghosh2020/rae`` trains in turn on mapped and on in-memory data, seven pairs: images/s, the median of the pairs' ratios and their spread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


def group(limit: int) -> tuple[Path, Path] | None:
    """A new control group with a memory limit in bytes, and the file of its peak; None where that is not possible."""
    for root, name, peak in ((GROUPS[0], "memory.limit_in_bytes", "memory.max_usage_in_bytes"), (GROUPS[1], "memory.max", "memory.peak")):
        place = root / f"expost-benchmark-{os.getpid()}"
        try:
            place.mkdir()
            (place / name).write_text(str(limit))
            return place, place / peak
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
    return None


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    return 0


def child(data: str, steps: int, mapped: bool, whole: bool) -> None:
    """Load, train, with ``whole`` also encode everything; prints one line of JSON."""
    import dataclasses

    import torch

    import expost
    from expost import data as sets
    from expost import recipes
    from expost.data import mapped as store

    torch.set_num_threads(1)
    store.LIMIT = 0 if mapped else 2**62
    start = time.perf_counter()
    experiment, dataset = recipes.plan("ghosh2020/rae", data_name=data, budget="cpu", settings={"training.steps": steps})
    loaded = time.perf_counter() - start
    most = [anonymous()]
    model, objective = experiment.build(0)
    training = dataclasses.replace(experiment.training, log_every=50)
    history = expost.fit(model, objective, dataset.train, training=training, device="cpu")
    most.append(anonymous())
    found = {"loaded": loaded, "images/s": history.images / history.seconds, "hash": dataset.hash, "n": len(dataset.train)}
    if whole:
        start = time.perf_counter()
        codes = model.latents(dataset.train, at="mean")
        expost.FullGaussian(codes.shape[1]).fit(codes)
        found["encoded"] = len(codes) / (time.perf_counter() - start)
        most.append(anonymous())
    print(json.dumps({**found, "anonymous": max(most), "sets": sets.__name__}))


def run(place: Path | None, data: Path, steps: int, mapped: bool, whole: bool = False) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(data), str(steps), str(int(mapped)), str(int(whole))]

    def enter() -> None:
        if place is not None:
            (place / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter, check=False)
    if done.returncode:
        sys.exit(f"the child ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write(path: Path, gigabytes: float) -> int:
    import numpy as np

    n = int(gigabytes * 1e9 / (3 * 64 * 64))
    rng = np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, "w+", np.uint8, (n, 3, 64, 64))
    for start in range(0, n, 4096):
        part = out[start : start + 4096]
        part[:] = np.frombuffer(rng.bytes(part.size), np.uint8).reshape(part.shape)
    return n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--limit", type=float, default=2.0, help="GB of the control group")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--folder", default=None, help="scratch folder with room for three times the data")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        data, few = Path(folder) / "large.npy", Path(folder) / "few.npy"
        n = write(data, arguments.gigabytes)
        made = group(int(arguments.limit * 1e9))
        try:
            found = run(made[0] if made else None, data, arguments.steps, True, whole=True)
            peak = f"{int(made[1].read_text()) / 1e9:.2f} GB of {arguments.limit:g} allowed" if made else "not measured (no control group)"
        finally:
            if made:
                made[0].rmdir()
        print(f"{n} images, {arguments.gigabytes:g} GB; peak of the group {peak}, own memory {found['anonymous'] / 1e9:.2f} GB", flush=True)
        print(
            f"read and arranged in {found['loaded']:.0f} s; training {found['images/s']:.0f} images/s, encoding {found['encoded']:.0f}",
            flush=True,
        )
        data.unlink()
        write(few, 0.8)
        ratios = []
        for _ in range(arguments.pairs):
            one, other = run(None, few, 150, True), run(None, few, 150, False)
            assert one["hash"] == other["hash"]
            ratios.append(one["images/s"] / other["images/s"])
            print(f"mapped {one['images/s']:.0f} images/s, in memory {other['images/s']:.0f}", flush=True)
        print(
            f"mapped / in memory: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} pairs"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1", sys.argv[5] == "1")
    else:
        main()
