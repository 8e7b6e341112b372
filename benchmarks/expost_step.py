"""What making a trained autoencoder generative costs: encode the training set, fit a GMM-10, sample 10 000 images, against its training.

    python benchmarks/expost_step.py runs/a [--repeats 7]

Aim: at most a tenth of the training time recorded in the run folder (same machine; give the same number of threads).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

from expost.density import GMM
from expost.papers import load_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    run = load_run(args.folder)
    assert run.folder is not None
    trained = run.folder.results()["training"]["seconds"]
    rows = []
    for seed in range(args.repeats):
        marks = [time.perf_counter()]
        codes = run.model.latents(run.dataset.train.x, at="mean")
        marks.append(time.perf_counter())
        mixture = GMM(codes.shape[1], 10).fit(codes, seed=seed)
        marks.append(time.perf_counter())
        run.model.with_prior(mixture).generate(10_000, seed=seed)
        marks.append(time.perf_counter())
        rows.append([b - a for a, b in itertools.pairwise(marks)])
    encode, fit, sample = (statistics.median(column) for column in zip(*rows, strict=True))
    whole = [sum(row) for row in rows]
    print(
        f"encode {len(run.dataset.train.x)} images {encode:.2f} s, fit GMM-10 {fit:.2f} s, sample 10 000 {sample:.2f} s (medians of {args.repeats})"
    )
    print(f"whole step {statistics.median(whole):.2f} s ({min(whole):.2f} to {max(whole):.2f}); training took {trained:.0f} s:")
    print(f"{100 * statistics.median(whole) / trained:.1f} % of it (aim: at most 10 %)")


if __name__ == "__main__":
    main()
