"""How the claims of bozkurt2018 are measured: four models, the 20 architectures, mini-MNIST. The held-out digit is 9, as in the paper."""

from __future__ import annotations

import torch

from expost.diagnose.optimal import aggregate_of
from expost.evaluate.features.classifier import TrainedClassifier
from expost.papers.base import Claim
from expost.papers.bozkurt2018.architectures import architectures, correlations
from expost.papers.bozkurt2018.figures import BINS, HELD_OUT, UP_TO, before_training, digit_images, examine, mini, mini_map, run_of
from expost.results import Verdict
from expost.runs.lab import Lab
from expost.seeds import some
from expost.tensors import batches, unit

__all__ = ["CLAIMS"]


def a1(lab: Lab) -> Verdict:
    run = run_of(lab, "bozkurt2018/deep", HELD_OUT)
    train, x = run.dataset.train.x, some(digit_images(run, HELD_OUT), 50, "a1", lab.seed)
    aggregate = aggregate_of(run.model, train)
    found = aggregate.query(run.model.latents(x, at="mean"), values=train.to(run.model.device), top=len(train))
    assert found.average is not None
    n = len(train)
    sums = float((found.weights.sum(1) - 1).abs().max())
    smallest = float(found.largest.min())
    low, high = float(found.perplexity.min()), float(found.perplexity.max())
    inside = float(torch.maximum(-found.average, found.average - 1).max())
    free = _free_decoder(found.weights[0], found.indices[0], unit(train[found.indices[0].cpu()]).double())
    off = float((free - found.average[0].cpu().double().flatten()).abs().max())
    holds = sums < 1e-9 and smallest >= 1 / n and low >= 1 - 1e-9 and high <= n and inside <= 1e-6 and off < 1e-4
    return Verdict(
        f"|Σw - 1| <= {sums:.1e}, largest weights >= {smallest:.3g} (1/N = {1 / n:.1e}), perplexity {low:.3f} to {high:.1f}, average beyond "
        f"[0, 1] by {max(0.0, inside):.1e}, free decoder differs by {off:.1e}",
        holds,
        {"sum": sums, "largest": smallest, "perplexity": high, "free decoder": off},
    )


def _free_decoder(weights: torch.Tensor, indices: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """argmin over m in [0, 1]^D of Σ_i w_i BCE(x_i, m), found by gradient descent on logits from grey, not by the formula."""
    kept = weights.cpu() > 1e-12
    w, x = weights.cpu()[kept].double(), images.flatten(1)[kept]
    logits = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=400, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = (w[:, None] * torch.nn.functional.binary_cross_entropy_with_logits(logits.expand_as(x), x, reduction="none")).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return torch.sigmoid(logits.detach())


def a2(lab: Lab) -> Verdict:
    shares = {name: found.certain().value for name, found in examine(lab).items()}
    peaks = {name: _peak(found.weights.perplexity) for name, found in examine(lab).items()}
    text = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    return Verdict(
        f"share below 1.2: {text}; fullest bins start at {sorted(set(peaks.values()))}",
        min(shares.values()) > 0.4 and all(p <= 1.0 for p in peaks.values()),
        shares,
    )


def _peak(perplexity: torch.Tensor) -> float:
    """Lower end of the fullest bin of Figure 1's histogram."""
    return UP_TO / BINS * int(torch.histc(perplexity.float().cpu(), BINS, 0, UP_TO).argmax())


def _closer(lab: Lab) -> dict[str, float]:
    return {name: found.closer_to_input.value for name, found in examine(lab).items()}


def a3(lab: Lab) -> Verdict:
    share = _closer(lab)["shallow, without"]
    return Verdict(f"closer to the input than to the weighted average: {share:.3f} of held-out digits", share > 0.7, {"share": share})


def a4(lab: Lab) -> Verdict:
    shares = _closer(lab)
    deep, shallow = shares["deep, without"], shares["shallow, without"]
    return Verdict(
        f"closer to the input: deep {deep:.3f}, shallow {shallow:.3f}",
        deep < 0.5 and deep < shallow - 0.2,
        {"deep": deep, "shallow": shallow},
    )


def a5(lab: Lab) -> Verdict:
    found = examine(lab)
    seen, unseen = (float(found[f"deep, {how}"].to_input.mean()) for how in ("with", "without"))
    return Verdict(
        f"mean BCE to the input, deep: trained with the digit {seen:.1f}, without {unseen:.1f} nats",
        seen < unseen,
        {"with": seen, "without": unseen},
    )


def a6(lab: Lab) -> Verdict:
    found = examine(lab)
    seen, unseen = (float((f.to_average - f.floor_average).mean()) for f in (found["deep, with"], found["deep, without"]))
    return Verdict(
        f"mean BCE(μ, x̂) - H(μ), deep: with {seen:.1f}, without {unseen:.1f} nats", seen < unseen, {"with": seen, "without": unseen}
    )


def a7(lab: Lab) -> Verdict:
    found = correlations(architectures(lab, HELD_OUT))
    text = f"Spearman with BCE(x, x̂) - BCE(μ, x̂) over 20 models: depth {found['depth']:.3f}, log parameters {found['parameters']:.3f}"
    return Verdict(text, found["depth"] > found["parameters"], found)


def a8(lab: Lab) -> Verdict:
    models = [a for a in architectures(lab, HELD_OUT) if a.depth == 1]
    gaps = {a.name: a.found.gap.value for a in models}
    shares = ", ".join(f"{a.name}: {a.found.closer_to_input.value:.3f}" for a in models)
    text = f"mean BCE(x, x̂) - BCE(μ, x̂): {', '.join(f'{k}: {v:.1f}' for k, v in gaps.items())} nats; share closer to the input {shares}"
    return Verdict(text, max(gaps.values()) < 0, gaps)


def a9(lab: Lab) -> Verdict:
    after, before = float(mini_map(lab).stds.median()), before_training(lab)
    return Verdict(
        f"median posterior standard deviation: {before:.3f} before, {after:.4f} after training",
        after < 0.1 and after < before,
        {"before": before, "after": after},
    )


def a10(lab: Lab) -> Verdict:
    share = mini_map(lab).certain_share()
    return Verdict(
        f"prior-weighted share with largest weight > .9: {share:.3f} ({mini(lab).experiment.training.steps} steps)",
        share > 0.8,
        {"share": share},
    )


def a11(lab: Lab) -> Verdict:
    classifier, _ = lab.extractor(lab.dataset)
    assert isinstance(classifier, TrainedClassifier)
    shares = {}
    found = examine(lab)
    for name in ("shallow, without", "deep, without"):
        images = found[name].reconstructions
        predicted = torch.cat([classifier.probabilities(b).argmax(1) for b in batches(images, 500)])
        shares[name.partition(",")[0]] = float((predicted == HELD_OUT).double().mean())
    text = f"reconstructions of unseen {HELD_OUT}s classified as {HELD_OUT}: shallow {shares['shallow']:.3f}, deep {shares['deep']:.3f}"
    return Verdict(text, shares["shallow"] > shares["deep"], shares)


CLAIMS = (
    Claim(
        "A1",
        "M",
        "optimal-decoder weights sum to 1, the largest is at least 1/N, perplexity lies in [1, N], the weighted average in [0, 1] and equals the free-decoder optimum",
        "optimal-decoder kernel",
        a1,
    ),
    Claim(
        "A2",
        "S",
        "the perplexity of the optimal-decoder weights peaks at 1 (> 40 % of test digits below 1.2)",
        "d = 50, shallow and deep, with and without the digit",
        a2,
    ),
    Claim(
        "A3",
        "S",
        "shallow, held-out digit: reconstructions are closer to the input than to the weighted average (fraction > .7)",
        "BCE to input and to weighted average",
        a3,
    ),
    Claim(
        "A4",
        "S",
        "deep, held-out digit: the same fraction is below .5 and lower than the shallow one by more than .2",
        "BCE to input and to weighted average",
        a4,
    ),
    Claim("A5", "S", "deep reconstructions are closer to the input when the digit was in training", "mean BCE", a5),
    Claim(
        "A6",
        "S",
        "for a digit in training, reconstruction and weighted average are nearer each other than for a held-out one",
        "mean BCE minus entropy, deep",
        a6,
    ),
    Claim("A7", "S", "over 20 architectures, depth predicts memorisation better than the number of parameters", "rank correlations", a7),
    Claim("A8", "S", "all single-hidden-layer models reconstruct the held-out digit closer to input than to weighted average", "BCE", a8),
    Claim("A9", "S", "mini-MNIST: posterior stds shrink with training (median below .1)", "posterior scales", a9),
    Claim("A10", "S", "the prior-weighted share of the latent plane with largest weight > .9 exceeds .8", "grid", a10),
    Claim(
        "A11",
        "S",
        "shallow reconstructions of held-out 9s are classified as 9 more often than deep ones",
        "classifier of the evaluation",
        a11,
    ),
)
