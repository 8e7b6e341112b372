"""Tables 1 and 2 of ghosh2020: measured and published columns, and the orderings that the paper reads from them.

An ordering is a function of columns, so the same code judges what was measured and what was printed. Values can be compared only under the
paper's extractor (Inception 2015); under any other only orderings can, so a table is reproduced if every ordering that its level gates (S) and
that the paper's own numbers for this data set satisfy holds as measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from expost.evaluate.protocol import DEFAULT, Scores, controls_of, same_scale
from expost.papers.ghosh2020.models import stage_spec
from expost.papers.published import published
from expost.results import Table, format_number, word
from expost.runs.lab import Lab

__all__ = ["DATA", "MODELS", "ORDERINGS", "Columns", "Ordering", "measured", "printed", "table1", "table2"]

#: column -> model -> value.
Columns = dict[str, dict[str, float]]

#: The paper's name of a model -> recipe; 2sVAE is the VAE with a second stage on its codes.
MODELS = {
    "VAE": "ghosh2020/vae",
    "CV-VAE": "ghosh2020/cv-vae",
    "WAE": "ghosh2020/wae",
    "2sVAE": "ghosh2020/vae",
    "RAE-GP": "ghosh2020/rae-gp",
    "RAE-L2": "ghosh2020/rae-l2",
    "RAE-SN": "ghosh2020/rae-sn",
    "RAE": "ghosh2020/rae",
    "AE": "ghosh2020/ae",
}
RAES = ("RAE-GP", "RAE-L2", "RAE-SN", "RAE")
VARIATIONAL = ("VAE", "CV-VAE")
#: Our name of a data set -> the paper's.
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "celeba": "CelebA"}
COLUMNS = ("Rec", "N", "GMM10", "Interp")


def normal_of(model: str) -> str:
    """What stands in the N column: the training prior for VAE and WAE, a fitted Gaussian for the others."""
    return "prior" if model in ("VAE", "WAE") else "gaussian"


def scores_of(lab: Lab, model: str) -> Scores:
    """Scores of a model with everything that its row of the tables needs."""
    recipe = MODELS[model]
    if recipe == "ghosh2020/vae":  # one run serves two rows
        stage = stage_spec(lab.run(recipe).experiment.task)
        return lab.scores(recipe, ("prior", "gmm:10", stage), groups=DEFAULT)
    return lab.scores(recipe, (normal_of(model), "gmm:10"), groups=DEFAULT)


def rows_of(lab: Lab, model: str) -> dict[str, str]:
    """Column -> row of the scores."""
    if model == "2sVAE":
        stage = stage_spec(lab.run(MODELS[model]).experiment.task)
        through = f"through {stage}"
        return {"Rec": f"reconstruction {through}", "N": f"samples {stage}", "Interp": f"interpolation norm-corrected {through}"}
    return {"Rec": "reconstruction", "N": f"samples {normal_of(model)}", "GMM10": "samples gmm:10", "Interp": "interpolation"}


def measured(lab: Lab, models: Iterable[str] = MODELS, metric: str = "FD") -> Columns:
    """Columns of the lab's runs; trains and scores what is missing."""
    columns: Columns = {name: {} for name in COLUMNS}
    for model in models:
        values = scores_of(lab, model).of(metric)
        for column, row in rows_of(lab, model).items():
            columns[column][model] = values[row]
    return columns


def printed(data: str, models: Iterable[str] = MODELS) -> Columns:
    """Table 1's columns as the paper prints them, or empty ones where it has no such data set."""
    columns: Columns = {name: {} for name in COLUMNS} if data in DATA else {}
    for model in models if data in DATA else ():
        for column in COLUMNS:
            try:
                columns[column][model] = published("ghosh2020", "Table 1", model, f"{DATA[data]} / {column}")
            except KeyError:
                pass
    return columns


def listed(values: dict[str, float]) -> str:
    return ", ".join(f"{k} {format_number(v)}" for k, v in values.items())


@dataclass(frozen=True)
class Ordering:
    """Something the paper reads from its table.

    Attributes:
        id, level: of the claim.
        sentence: what is read.
        judge: columns -> (figures in words, whether it holds). ``KeyError`` if a column lacks what is needed.
        models: whose rows are needed.
        except_on: data sets of which the paper says the contrary.
    """

    id: str
    level: str
    sentence: str
    judge: Callable[[Columns], tuple[str, bool]]
    models: tuple[str, ...]
    except_on: tuple[str, ...] = ()

    def check(self, columns: Columns, data: str) -> tuple[str, bool]:
        """Figures in words, and whether the columns of this data set are as the paper says."""
        text, holds = self.judge(columns)
        return text, holds != (data in self.except_on)


def mixture_beats_normal(c: Columns) -> tuple[str, bool]:
    pairs = {m: (c["N"][m], c["GMM10"][m]) for m in c["GMM10"]}
    text = "; ".join(f"{m} {format_number(n)} -> {format_number(g)}" for m, (n, g) in pairs.items())
    return f"N -> GMM-10: {text}", all(g < n for n, g in pairs.values())


def ae_needs_a_mixture(c: Columns) -> tuple[str, bool]:
    n, g = c["N"]["AE"], c["GMM10"]["AE"]
    return f"AE: N {format_number(n)}, GMM {format_number(g)}, ratio {n / g:.2f}", n >= 2 * g


def best_mixture_is_deterministic(c: Columns) -> tuple[str, bool]:
    best = min(c["GMM10"], key=lambda m: c["GMM10"][m])
    return f"best GMM: {best} ({listed(c['GMM10'])})", best not in VARIATIONAL


def raes_reconstruct_better(c: Columns) -> tuple[str, bool]:
    values = {m: c["Rec"][m] for m in ("VAE", *RAES)}
    return listed(values), all(values[m] < values["VAE"] for m in RAES)


def rae_beats_vae(c: Columns) -> tuple[str, bool]:
    rae, vae = c["GMM10"]["RAE"], c["N"]["VAE"]
    return f"RAE + GMM {format_number(rae)}, VAE + N(0, I) {format_number(vae)}", rae < vae


def rae_first_in_normal(c: Columns) -> tuple[str, bool]:
    best = min(c["N"], key=lambda m: c["N"][m])
    return f"first in the N column: {best} ({listed(c['N'])})", best in RAES


def midpoints_of_raes(c: Columns) -> tuple[str, bool]:
    values = {m: c["Interp"][m] for m in ("VAE", *RAES)}
    return listed(values), all(values[m] <= values["VAE"] for m in RAES)


SINGLE = tuple(m for m in MODELS if m != "2sVAE")
ORDERINGS = {
    o.id: o
    for o in (
        Ordering("C1", "S", "GMM-10 beats the N column in every row", mixture_beats_normal, SINGLE),
        Ordering("C2", "S", "plain AE: N at least twice GMM-10", ae_needs_a_mixture, ("AE",)),
        Ordering("C3", "S", "the best GMM-10 belongs to a RAE, AE or WAE", best_mixture_is_deterministic, SINGLE),
        Ordering("C4", "S", "every RAE reconstructs better than the VAE", raes_reconstruct_better, ("VAE", *RAES)),
        Ordering("C5", "S", "RAE + GMM-10 beats VAE + N(0, I)", rae_beats_vae, ("VAE", "RAE")),
        Ordering("C6", "W", "a RAE is first in the N column, but not on MNIST", rae_first_in_normal, tuple(MODELS), ("mnist",)),
        Ordering("C7", "S", "interpolation midpoints of RAEs are not worse than the VAE's", midpoints_of_raes, ("VAE", *RAES)),
    )
}


def table1(lab: Lab) -> tuple[list[Table], bool]:
    """Table 1 for the lab's data: distances, orderings, controls; and whether every gated ordering holds."""
    data = lab.dataset.name
    own, paper, scores = measured(lab), printed(data), scores_of(lab, "VAE")
    label = scores.label
    names = [f"{c}{suffix}" for c in COLUMNS for suffix in ("", " (published)")]
    table = Table(("model", *names), title=f"ghosh2020, Table 1, {DATA.get(data, data)}: {label} measured, FID published (lower is better)")
    for model in MODELS:
        cells = [columns.get(c, {}).get(model) for c in COLUMNS for columns in (own, paper)]
        table.add(model, *cells)
    table.notes += [
        "N: the training prior for VAE and WAE, a fitted Gaussian for the others; Interp: spherical midpoints; "
        "2sVAE: everything through its second stage, midpoints linear and norm-corrected",
        same_scale(label),
        *scores.notes,
    ]
    for column in COLUMNS:
        common = [m for m in MODELS if m in own[column] and m in paper.get(column, {})]
        if len(common) > 2:
            rank = rank_correlation([own[column][m] for m in common], [paper[column][m] for m in common])
            table.notes.append(f"{column}: rank correlation of measured and published {rank:+.2f} over {len(common)} models")
    verdicts, good = _verdicts(own, paper, data)
    return [table, verdicts, controls_of(scores)], good


def _verdicts(own: Columns, paper: Columns, data: str) -> tuple[Table, bool]:
    table = Table(("claim", "level", "ordering", "published", "measured"), title="What the paper reads from the table")
    good, known = True, any(paper.values())
    for ordering in ORDERINGS.values():
        text, holds = ordering.check(own, data)
        printed_holds = not known or ordering.check(paper, data)[1]
        table.add(ordering.id, ordering.level, ordering.sentence, word(printed_holds) if known else "-", word(holds))
        good = good and (holds or ordering.level == "W" or not printed_holds)
        if not holds:
            table.notes.append(f"{ordering.id}: {text}")
    return table, good


def table2(lab: Lab) -> tuple[list[Table], bool]:
    """Table 2: precision (F1/8) and recall (F8) of samples from N and from the mixture."""
    data = lab.dataset.name
    heads = [f"{c} {m}{s}" for c in ("N", "GMM") for m in ("precision", "recall") for s in ("", " (published)")]
    table = Table(
        ("model", *heads), title=f"ghosh2020, Table 2, {DATA.get(data, data)}: precision F1/8 and recall F8 of PRD (higher is better)"
    )
    own = {metric: measured(lab, SINGLE, metric) for metric in ("F1/8", "F8")}
    paper = {"F1/8": _printed_prd(data, "precision (F_1/8)"), "F8": _printed_prd(data, "recall (F_8)")}
    for model in SINGLE:
        cells = [columns[c].get(model) for c in ("N", "GMM10") for m in ("F1/8", "F8") for columns in (own[m], paper[m])]
        table.add(model, *cells)
    scores = scores_of(lab, "VAE")
    spread = [r["F8"].error for name in SINGLE for r in scores_of(lab, name).rows.values() if "F8" in r and r["F8"].error is not None]
    table.notes += [
        same_scale(scores.label),
        f"features {scores.label}; standard error over runs of k-means at most {max(spread):.3f}",
        *scores.notes,
    ]
    text, holds = recall_rises(own["F8"])
    known = bool(paper["F8"]["N"])
    printed_holds = not known or recall_rises(paper["F8"])[1]
    verdicts = Table(("claim", "level", "ordering", "published", "measured"), title="What the paper reads from the table")
    verdicts.notes.append(f"F8, N -> GMM: {text}")
    sentence = "GMM at least equals N in recall for WAE and the RAEs"
    verdicts.add("C9", "S", sentence, word(printed_holds) if known else "-", word(holds))
    return [table, verdicts, controls_of(scores)], holds or not printed_holds


def _printed_prd(data: str, name: str) -> Columns:
    """Table 2's N and GMM columns of one score, empty where the paper has no such data set."""
    columns: Columns = {"N": {}, "GMM10": {}}
    for column, values in columns.items():
        for model in SINGLE if data in DATA else ():
            values[model] = published("ghosh2020", "Table 2", model, f"{DATA[data]} / {column} / {name}")
    return columns


def recall_rises(recall: Columns, models: Iterable[str] = ("WAE", *RAES)) -> tuple[str, bool]:
    """F8 of N and of GMM-10, and whether none falls."""
    pairs = {m: (recall["N"][m], recall["GMM10"][m]) for m in models}
    return "; ".join(f"{m} {n:.3f} -> {g:.3f}" for m, (n, g) in pairs.items()), all(g >= n for n, g in pairs.values())


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation of two lists without ties to speak of."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)
