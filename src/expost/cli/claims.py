"""``expost claims``: run what can be measured, remember it by content, print figure and verdict."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from expost.evaluate.protocol import metrics_code
from expost.files import keep, read_signed, write_signed
from expost.identity import code_hash
from expost.locks import writing
from expost.progress import Bar
from expost.recipes.claims import Claim, claims_of
from expost.recipes.lab import Lab
from expost.recipes.verdict import word

__all__ = ["check_claims"]


def check_claims(
    paper: str | None,
    source: str,
    budget: Any,
    seed: int,
    root: Path,
    device: str | None,
    *,
    only_list: bool = False,
    loading: dict[str, Any] | None = None,
) -> list[str]:
    """Print claims with verdicts; returns the ids of M and S claims that do not hold."""
    chosen = claims_of(paper)
    if only_list:
        for claim in chosen:
            print(f"{claim.id:4} {claim.level}  {claim.sentence}\n        {claim.how}" + ("" if claim.measure else "  (not built yet)"))
        return []

    def say(text: str) -> None:
        print(f"  ... {text}", file=sys.stderr, flush=True)

    lab = Lab(source, budget, Path(root), seed, device, say=say, loading=loading or {})
    cache_file = Path(root) / "claims.json"
    cache = _measured(cache_file)
    runs = functools.cache(lambda paper: _runs(lab, paper))  # loads the data: once, not for every claim
    broken: list[str] = []
    counts = {"holds": 0, "FAILS": 0, "not built yet": 0}
    with Bar(len(chosen), what="claims") as bar:
        for claim in chosen:
            bar.update(sum(counts.values()), claim.id)
            if claim.measure is None:
                verdict, measured = "not built yet", ""
            else:
                key = _key(claim, lab, runs)
                if key not in cache:
                    start = time.monotonic()
                    outcome = claim.measure(lab)
                    cache[key] = {
                        "claim": claim.id, "holds": outcome.holds, "measured": outcome.measured, "figures": outcome.figures,
                        "seconds": round(time.monotonic() - start, 1), "data": source, "budget": budget, "seed": seed,
                    }  # fmt: skip
                    with keep(root), writing(Path(root)):  # with what others have measured meanwhile
                        write_signed(cache_file, {**_measured(cache_file), key: cache[key]})
                verdict, measured = word(cache[key]["holds"]), cache[key]["measured"]
                if verdict == "FAILS" and claim.level != "W":
                    broken.append(claim.id)
            counts[verdict] += 1
            print(f"{claim.id:4} {claim.level}  {verdict:13}  {claim.sentence}" + (f"\n        {measured}" if measured else ""), flush=True)
    print(
        f"{counts['holds']} hold, {counts['FAILS']} fail, {counts['not built yet']} not built yet ({budget} budget, {source}, seed {seed})"
    )
    return broken


class _Entry(TypedDict):
    """What is remembered of a claim."""

    holds: bool | None
    measured: str


def _measured(file: Path) -> dict[str, Any]:
    """The entries of the cache; none where it is damaged, so that what it held is measured again."""
    try:
        return dict(read_signed(file, "the cache of claims", "delete it", dict[str, _Entry])) if file.is_file() else {}
    except (ValueError, OSError):
        return {}


def _key(claim: Claim, lab: Lab, runs: Callable[[str], str]) -> str:
    """Content: the measures' code, version, budget and seed; where the lab is used, also the metrics' code and ``runs(paper)``."""
    from expost import __version__

    assert claim.measure is not None
    module = inspect.getmodule(claim.measure)
    assert module is not None
    helpers = {inspect.getmodule(value) for value in vars(module).values() if inspect.isfunction(value)}
    own = [m for m in helpers if m is not None and m.__name__.startswith("expost.recipes.")]
    code = code_hash(*sorted({module, *own}, key=lambda m: m.__name__))
    parts = [claim.id, __version__, lab.budget, str(lab.seed), code]
    body = inspect.getsource(claim.measure).partition(":\n")[2]
    if re.search(r"\blab\b(?!\.seed)", body):  # more than its seed: runs and their scores
        parts += [metrics_code(), runs(claim.paper)]
    return f"{claim.id}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def _runs(lab: Lab, paper: str) -> str:
    """The identities of all runs that a paper's claims may ask for."""
    from expost.recipes import dai2019, ghosh2020, lossless, plane

    if paper == "004":
        wanted = [(recipe, name) for recipe in ("yu2020/vae", "yu2020/iwae") for name in plane.DENSITIES]
        wanted += [(recipe, lab.source) for recipe in dict.fromkeys(coder.recipe for coder in lossless.coders(lab))]
    elif paper == "000":
        parts = (lab.source, f"{lab.source}:without=9")
        wanted = [(f"bozkurt2018/{name}", part) for name in ("shallow", "deep") for part in parts]
        wanted.append(("bozkurt2018/mini", f"{lab.source}:per-class=10"))
    elif paper == "003":
        wanted = [(f"manoj2018/{name}", lab.source) for name in ("vae", "omega-vae")]
    else:
        wanted = [(row.name, lab.source) for row in (*ghosh2020.RECIPES, *dai2019.RECIPES)]
    experiments = (lab.plan(recipe, source=source) for recipe, source in wanted)
    return " ".join(experiment.identity(dataset.hash, lab.seed) for experiment, dataset in experiments)
