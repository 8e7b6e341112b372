"""Every command on a full and on a read-only disk: one sentence or success, tables printed, no traceback. Needs root, to mount small disks.

    python benchmarks/starved_disks.py            exit status 1 if a promise broke

Each command works on a copy of a trained run on a tmpfs of its own, with its cache there too: filled to the last block, or mounted read-only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TABLES = {"density", "evaluate", "diagnose", "likelihood"}
"""Commands whose result is what they print: it must be there, with status 0."""


def commands(disk: Path) -> dict[str, list[str]]:
    run, data = str(disk / "run"), ["--data", "digits", "--budget", "smoke"]
    return {
        "train": ["train", "yu2020/bits-back", *data, "--out", str(disk / "new")],
        "density": ["density", run, "gaussian"],
        "sample": ["sample", run, "--n", "4", "--out", str(disk / "s.npz")],
        "evaluate": ["evaluate", run, "--extractor", "pixels", "--n", "50", "--density", "gaussian", "--metrics", "fd"],
        "diagnose": ["diagnose", run, "--n", "200"],
        "likelihood": ["likelihood", run, "--n", "20", "--samples", "2"],
        "compress": ["compress", run, "--n", "20", "--no-peers", "-o", str(disk / "a.xpz")],
    }


def expost(arguments: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "EXPOST_QUIET": "1"}
    return subprocess.run([sys.executable, "-m", "expost", *arguments], capture_output=True, text=True, env=environment, check=False)


@contextlib.contextmanager
def starved(run: Path, kind: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
        try:
            shutil.copytree(run, disk / "run")
            if kind == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            else:
                with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
            yield disk
        finally:
            subprocess.run(["umount", folder], check=True)


def main() -> int:
    if os.geteuid() != 0:
        print("not root: small disks cannot be mounted, nothing was tried")
        return 0
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        run, usual = Path(folder) / "run", Path(folder) / "cache"
        made = expost(["train", "yu2020/bits-back", "--data", "digits", "--budget", "smoke", "--out", str(run)], usual)
        if made.returncode:
            raise SystemExit(made.stderr)
        print(f"{'disk':<12}{'command':<12}{'status':>7}{'lines':>7}{'notes':>7}  outcome")
        for kind in ("full", "read-only"):
            counts: Counter[str] = Counter()
            for name in commands(Path()):
                with starved(run, kind) as disk:
                    done = expost(commands(disk)[name], disk / "cache")
                lines = done.stderr.splitlines()
                notes = [line for line in lines if line.startswith("note: ")]
                said = [line for line in lines if line.startswith("expost: ")]
                clean = "Traceback" not in done.stderr and (done.returncode == 0 or (done.returncode == 2 and len(said) == 1))
                printed = name not in TABLES or (done.returncode == 0 and "---" in done.stdout)
                outcome = "traceback" if not clean else "table lost" if not printed else "success" if done.returncode == 0 else "sentence"
                counts[outcome] += 1
                last = (said or notes or [""])[-1].replace(str(disk), "DISK")
                print(
                    f"{kind:<12}{name:<12}{done.returncode:>7}{len(done.stdout.splitlines()):>7}{len(notes):>7}  {outcome}: {last}",
                    flush=True,
                )
            print(f"{kind}: {dict(counts)}")
            broken += counts["traceback"] + counts["table lost"]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
