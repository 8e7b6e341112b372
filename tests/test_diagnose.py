"""``expost diagnose`` on models broken on purpose: it names the fault first, and its remedy works. It finds nothing in a healthy model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expost import heads
from expost.cli import main
from expost.density import StandardNormal
from expost.diagnose import findings
from expost.diagnose.findings import Diagnosis, code_scale, diagnose, generalising, loss_ratio
from expost.diagnose.optimal import optimal_decoder
from expost.runs import diagnosis as recipes_diagnosis
from expost.runs.densities import fitted_at
from expost.runs.run import load_run
from toys import model, pictures, vectors

SHORT = {"training.epochs": None, "training.steps": 600}
MLP = {"network": "mlp-256"}
#: Fault -> recipe, data and settings that bring it about.
BROKEN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "collapsed posterior": ("ghosh2020/vae", "digits", {"objective.beta": 100.0, **MLP}),  # βγ above every eigenvalue of the data
    "memorising decoder": ("kingma2014/vae", "digits:per-class=10", {"latent": 10, "network": "mlp-400-200-100"}),  # deep, 100 images
    "mismatched aggregate posterior": (
        "kingma2014/vae",
        "digits",
        {"objective.beta": 0.001, "latent": 8, **MLP},
    ),  # the prior hardly counts
    "dead units": ("bozkurt2018/deep", "digits", {"latent": 16}),
    "exploding codes": ("ghosh2020/vae", "digits", {"objective.beta": 0.001, "latent": 8, **MLP}),  # inflated afterwards
}


def trained(folder: Path, recipe: str, data: str, settings: dict[str, Any]) -> Path:
    chosen = [part for key, value in {**settings, **SHORT}.items() for part in ("--set", f"{key}={value}")]
    assert main(["train", recipe, "--data", data, *chosen, "--out", str(folder)]) == 0
    return folder


def diagnosed(folder: Path, *more: str) -> dict[str, Any]:
    assert main(["diagnose", str(folder), "--n", "300", *more]) == 0
    found: dict[str, Any] = json.loads((folder / "diagnosis" / "diagnosis.json").read_text())
    return found


def inflate(folder: Path, factor: float) -> None:
    """Make every code so much larger, and the decoder's first layer so much smaller: the reconstructions stay."""
    run = load_run(folder)
    (*_, last), (first, *_) = (
        [m for m in net.modules() if isinstance(m, nn.Linear)] for net in (run.model.encoder.net, run.model.decoder.net)
    )
    with torch.no_grad():
        last.weight[: run.experiment.latent] *= factor
        last.bias[: run.experiment.latent] *= factor
        first.weight /= factor
    assert run.folder is not None
    run.folder.save_model(run.model)


@pytest.mark.parametrize("fault", BROKEN)
def test_the_fault_is_named_first_and_its_remedy_works(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path / "run", *BROKEN[fault])
    if fault == "exploding codes":
        inflate(folder, 100.0)
    found = diagnosed(folder)
    assert found["findings"][0]["name"] == fault, found["findings"]
    for _ in range(4):  # fewer units may lose one again in training, on some processors: the remedy is then printed again
        printed = capsys.readouterr().out
        assert f"1. {fault}" in printed
        commands = found["findings"][0]["commands"]
        for command in commands:
            assert f"$ {command}" in printed
            words = shlex.split(command)
            assert words[0] == "expost"
            assert main(words[1:]) == 0
        last = Path(shlex.split(commands[-1])[2])  # every remedy ends in a diagnosis of what it made
        found = json.loads((last / "diagnosis" / "diagnosis.json").read_text())
        if fault not in [finding["name"] for finding in found["findings"]]:
            break
    else:
        raise AssertionError(f"{fault} after four rounds of its remedy: {found['findings']}")


def test_a_healthy_model_has_no_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path / "run", "kingma2014/vae", "digits", {"latent": 4, **MLP})
    found = diagnosed(folder)
    assert found["findings"] == []
    assert "no findings" in capsys.readouterr().out
    html = (folder / "diagnosis" / "report.html").read_text()
    assert html.count("data:image/png") == 7  # memorisation, samples, traversals, units, variances, generalisation, codes
    for part in ("Does the decoder memorise?", "What single units do", "latent units", "marginals of q(z)", "optimal decoder"):
        assert part in html


def test_a_fixed_variance_that_is_far_from_the_error_is_a_finding(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "dai2019/vae-fixed", "digits", {"latent": 4, **MLP})
    found = diagnosed(folder)
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert "wrong decoder variance" in by_name
    lines = by_name["wrong decoder variance"]["commands"]
    assert shlex.split(lines[0])[2] == "dai2019/vae-learned"
    assert "latent=4" in lines[0]
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0
    again = json.loads((folder.with_name("run-mended-wrong") / "diagnosis" / "diagnosis.json").read_text())
    assert "wrong decoder variance" not in [finding["name"] for finding in again["findings"]]


def test_a_deterministic_model_and_points(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "ghosh2020/rae", "digits", {"latent": 4, **MLP})
    found = diagnosed(folder, "--density", "gmm:10")
    assert any("deterministic" in note for note in found["notes"])
    assert "loss_ratio" in found["measured"]
    folder = trained(tmp_path / "points", "yu2020/vae", "2spirals", {"network": "yu-small"})
    found = diagnosed(folder)
    assert "closer_to_input" in found["measured"]


def test_holes_between_classes_are_seen_and_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Codes that the prior hardly held together: most draws from N(0, I) lie where no data are."""
    folder = trained(tmp_path / "run", *BROKEN["mismatched aggregate posterior"])
    found = diagnosed(folder, "--classes")
    printed = capsys.readouterr().out
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert "holes between classes" in by_name, printed
    rows = {row[0]: row[1] for row in found["classes"]["rows"]}
    assert sum(rows[f"mass of class {i}"] for i in range(10)) == pytest.approx(1)
    assert rows["class radius E r (upper estimate)"] > 0
    assert "isoperimetric" in printed
    for command in by_name["holes between classes"]["commands"]:
        assert main(shlex.split(command)[1:]) == 0
    again = json.loads((folder / "diagnosis" / "diagnosis.json").read_text())
    assert again["findings"] == []
    filled = {row[0]: row[1] for row in again["classes"]["rows"]}
    hole = "holes among draws (no class reaches 0.9)"
    assert filled[hole] < rows[hole] - 0.2
    assert "class radius E r (upper estimate)" not in filled  # its theory is about N(0, I)


def test_pictures_are_a_function_of_the_seed(tmp_path: Path) -> None:
    run = load_run(trained(tmp_path / "run", "kingma2014/vae", "digits", {"latent": 4, **MLP}))
    reports = []
    for state in (1, 2):
        torch.manual_seed(state)
        reports.append(recipes_diagnosis.diagnose_run(run, "prior", n=100, progress=False))
    first, second = reports
    for a, b in zip(first.strips, second.strips, strict=True):
        assert all(torch.equal(a.rows[name], b.rows[name]) for name in a.rows)
    assert [c.to_json() for c in first.charts] == [c.to_json() for c in second.charts]


def test_classes_need_images_with_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--budget", "smoke", "--set", "network=yu-small", "--set", "training.steps=3"]
    assert main(["train", "yu2020/vae", "--data", "2spirals", *chosen, "--out", str(tmp_path / "points")]) == 0
    capsys.readouterr()
    assert main(["diagnose", str(tmp_path / "points"), "--classes"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not (tmp_path / "points" / "diagnosis").exists()


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(tmp_path / "nothing")]) != 0
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


# -- the parts -----------------------------------------------------------------------------------------------------------------------


def make() -> tuple[Diagnosis, torch.Tensor]:
    x = vectors(200)
    return diagnose(model(), x[:120], x[120:], n=80, progress=False), x


def test_diagnose_is_a_function_of_its_seed() -> None:
    first, _ = make()
    second, _ = make()
    assert first.to_json() == second.to_json()
    assert first.table().columns[1] == "finding"
    assert set(first.measured) <= set(first.results())


def test_the_scale_of_codes_is_relative_to_what_is_sampled() -> None:
    x = vectors(200)
    toy = model()
    one = code_scale(toy, x, StandardNormal(2)).value
    with torch.no_grad():
        last = toy.encoder.net[-1]
        last.weight[:2] *= 50
        last.bias[:2] *= 50
    assert code_scale(toy, x, StandardNormal(2)).value == pytest.approx(50 * one, rel=1e-4)
    assert code_scale(toy, x, None).value >= 1


def test_the_loss_ratio_of_equal_data_is_one() -> None:
    x = vectors(100)
    assert loss_ratio(model(), x, x).value == pytest.approx(1.0)
    worse = loss_ratio(model(), x, 10 * x)
    assert worse.value > 5
    assert worse.details["held out"] > worse.details["train"]


def test_an_average_of_many_is_no_memory() -> None:
    """Broad posteriors: the optimal decoder averages many data, and being close to it is no memory."""
    x = vectors(200)
    broad = model(encoder_head=heads.Constant(50.0))
    assert generalising(optimal_decoder(broad, x[:120], x[120:])) is None
    narrow = model(encoder_head=heads.Constant(1e-4))
    found = generalising(optimal_decoder(narrow, x[:120], x[120:]))
    assert found is not None
    assert found.n == 80


def test_thresholds_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    x = vectors(200)
    toy = model()
    names = [f.name for f in diagnose(toy, x[:120], x[120:], n=80, progress=False).findings]
    assert "exploding codes" not in names
    monkeypatch.setattr(findings, "EXPLODED", 0.0)
    again = diagnose(toy, x[:120], x[120:], n=80, progress=False).findings
    assert again[0].name == "exploding codes"
    assert "rms" in again[0].measured


def test_the_weight_that_keeps_half_of_the_units(tmp_path: Path) -> None:
    run = load_run(trained(tmp_path / "run", *BROKEN["collapsed posterior"]))
    found = recipes_diagnosis.diagnose_run(run, "prior", n=300, pictures=False, progress=False).diagnosis
    weight = recipes_diagnosis.weight_that_keeps(run, found)
    assert weight is not None
    linear = found.panel.linear
    assert linear is not None
    half = (linear.d + 1) // 2
    mended = linear.gamma * weight / 100.0
    assert int((linear.eigenvalues[: linear.d] > mended).sum()) >= half


def test_images_of_uint8_are_taken() -> None:
    from toys import convolutional

    found = diagnose(convolutional(), pictures(80), pictures(60, seed=1), n=60, progress=False)
    assert found.optimal is not None
    assert found.optimal.kind == "squared"


def test_a_density_fitted_to_means_is_compared_with_means(tmp_path: Path) -> None:
    """Posteriors are broad here, so samples of q(z | x) are not distributed like their means."""
    folder = trained(tmp_path / "run", *BROKEN["dead units"])
    assert main(["density", str(folder), "gmm:10", "gmm:10@sample"]) == 0
    for spec in ("gmm:10", "gmm:10@sample"):
        found = diagnosed(folder, "--density", spec)
        assert "mismatched aggregate posterior" not in [f["name"] for f in found["findings"]], spec
    assert fitted_at("gmm:10") == "mean"
    assert fitted_at("stage") == fitted_at("flow@sample") == "sample"


def test_weights_that_are_not_finite_are_refused() -> None:
    toy, x = model(), vectors(100)
    with torch.no_grad():
        toy.decoder.net[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"decoder\.net\.0\.weight.*diverged"):
        diagnose(toy, x[:60], x[60:], progress=False)


def test_a_diverged_training_is_named_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    chosen = ["--set", "training.lr=1e9", "--set", "training.epochs=None", "--set", "training.steps=50", "--set", "network=mlp-32"]
    assert main(["train", "kingma2014/vae", "--data", "digits", *chosen, "--out", str(folder)]) == 1
    found = diagnosed(folder)
    assert [f["name"] for f in found["findings"]] == ["diverged training"]
    assert "training.lr=0.001" in found["findings"][0]["commands"][0]
    assert "non-finite loss" in found["findings"][0]["measured"]


def test_reconstructions_no_better_than_the_mean_are_found() -> None:
    x = vectors(300)
    toy = model()
    with torch.no_grad():
        toy.decoder.net[-1].bias += 100.0  # as a wrong range does
    found = diagnose(toy, x[:150], x[150:], n=150, progress=False)
    assert found.results()["relative_error"].value > 100
    assert found.findings[0].name == "failed reconstruction"
    zero = findings.relative_error(toy, x[:150], x[:150] * 0 + x[:150].mean(0) + 1e-3)
    assert zero.value > 1


def test_a_weight_of_zero_is_zero() -> None:
    """The decoder variance acts as β γ: without a KL term it is 0, whatever γ is."""
    x = vectors(200)
    found = diagnose(model(), x[:120], x[120:], beta=0.0, n=80, progress=False)
    assert found.results()["variance_ratio"].value == 0
    assert any("linear" in note for note in found.panel.notes)
