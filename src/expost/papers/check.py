"""``expost claims``: measure what can be measured, print figure and verdict. Runs and measurements are kept, verdicts never."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from expost.papers.base import claims_of
from expost.results import word
from expost.runs.lab import Lab
from expost.system.progress import Bar

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
    broken: list[str] = []
    counts = {"holds": 0, "FAILS": 0, "not built yet": 0}
    with Bar(len(chosen), what="claims") as bar:
        for claim in chosen:
            bar.update(sum(counts.values()), claim.id)
            outcome = claim.measure(lab) if claim.measure is not None else None
            verdict, measured = (word(outcome.holds), outcome.measured) if outcome is not None else ("not built yet", "")
            if verdict == "FAILS" and claim.level != "W":
                broken.append(claim.id)
            counts[verdict] += 1
            print(f"{claim.id:4} {claim.level}  {verdict:13}  {claim.sentence}" + (f"\n        {measured}" if measured else ""), flush=True)
    if old := lab.trained_by_other_code():
        some = ", ".join(str(path) for path in old[:3]) + (", ..." if len(old) > 3 else "")
        print(
            f"note: {len(old)} of {lab.asked} runs were trained by other code than this ({some}): remove their folders to train them again"
        )
    print(
        f"{counts['holds']} hold, {counts['FAILS']} fail, {counts['not built yet']} not built yet ({budget} budget, {source}, seed {seed})"
    )
    return broken
