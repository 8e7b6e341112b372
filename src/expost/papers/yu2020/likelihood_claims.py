"""How claims E2 to E6 and E10 of paper 004 are measured: likelihoods on the plane, training curves, coding."""

from __future__ import annotations

import math

from expost.papers.measures import short
from expost.papers.verdict import Verdict
from expost.papers.yu2020.lossless import coders, rates
from expost.papers.yu2020.plane import DENSITIES, dark_mass, likelihoods
from expost.runs.lab import Lab

MODELS = ("yu2020/vae", "yu2020/iwae")


def e2(lab: Lab) -> Verdict:
    figures: dict[str, float] = {}
    holds = True
    for recipe in MODELS:
        for name in DENSITIES:
            found = likelihoods(lab, recipe, name)
            nll, bound = found.nll[max(found.nll)], found.nll[1]
            holds = holds and found.entropy - 0.005 <= nll <= bound  # 0.005: Monte Carlo error of the grid estimate
            figures |= {f"{short(recipe)} {name} NLL - H": nll - found.entropy, f"{short(recipe)} {name} -ELBO - NLL": bound - nll}
    least = min(figures.values())
    return Verdict(
        f"smallest of NLL - H and -ELBO - NLL over {len(figures) // 2} models: {least:.4f} bits; "
        + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()),
        holds,
        figures,
    )


def e3(lab: Lab) -> Verdict:
    """At equally many decoded codes: the recipes' batches at the cpu budget."""
    gains = {}
    for name in DENSITIES:
        vae, iwae = (likelihoods(lab, recipe, name) for recipe in MODELS)
        gains[name] = vae.nll[max(vae.nll)] - iwae.nll[max(iwae.nll)]
    text = "NLL of the VAE minus the IWAE's (bits): " + ", ".join(f"{k} {v:.3f}" for k, v in gains.items())
    return Verdict(text, gains["checkerboard"] > 0 and gains["2spirals"] > 0, gains)


def e4(lab: Lab) -> Verdict:
    gaps = {}
    for recipe in MODELS:
        for name in DENSITIES:
            found = likelihoods(lab, recipe, name)
            gaps[f"{short(recipe)} {name}"] = found.nll[max(found.nll)] - found.entropy
    holds = all(gaps[f"{m} 8gaussians"] == min(gaps[f"{m} {n}"] for n in DENSITIES) for m in ("vae", "iwae"))
    return Verdict("NLL - H (bits): " + ", ".join(f"{k} {v:.3f}" for k, v in gaps.items()), holds, gaps)


def e5(lab: Lab) -> Verdict:
    masses = {f"{short(recipe)} {name}": dark_mass(lab, recipe, name) for recipe in MODELS for name in DENSITIES}
    holds = all(masses[f"iwae {name}"] < masses[f"vae {name}"] for name in DENSITIES)
    return Verdict("dark prior mass: " + ", ".join(f"{k} {v:.4f}" for k, v in masses.items()), holds, masses)


def e6(lab: Lab) -> Verdict:
    """Means of the history's quarters: the first against the last."""
    figures: dict[str, float] = {}
    holds = True
    for name in DENSITIES:
        history = lab.run("yu2020/vae", source=name)
        assert history.folder is not None
        rows = [row for row in history.folder.rows() if row["split"] == "train"]
        for part in ("distortion", "rate"):
            values = [row[part] for row in rows if part in row]
            quarter = max(1, len(values) // 4)
            first, last = (sum(v) / len(v) / math.log(2) for v in (values[:quarter], values[-quarter:]))
            figures |= {f"{name} {part} first": first, f"{name} {part} last": last}
            holds = holds and (last < first if part == "distortion" else last > first)
    return Verdict("bits, first and last quarter of training: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()), holds, figures)


def e10(lab: Lab) -> Verdict:
    figures: dict[str, float] = {}
    holds, images = True, 0
    for coder in coders(lab):
        found = rates(lab, coder)
        figures[short(str(coder))] = found["net"] / found["elbo"]
        holds = holds and found["exact"] and abs(found["net"] / found["elbo"] - 1) < 0.05
        images = found["images"]
    text = f"{images} images of {lab.dataset.name} each came back exactly; net length / -ELBO: " if holds else "net length / -ELBO: "
    return Verdict(text + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()), holds, figures)
