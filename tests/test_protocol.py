"""The protocol of ghosh2020: what is compared with what, quirks by name, controls in every table, results that survive a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expost.density import GMM, FullGaussian
from expost.evaluate import protocol
from expost.evaluate.controls import scored as scored_part
from expost.evaluate.features.base import Pixels, extract
from expost.evaluate.interpolate import lerp, lerp_to_mean_norm, pairs, slerp
from expost.evaluate.metrics.frechet import frechet_distance
from expost.evaluate.protocol import INTERPOLATIONS, Scores, score
from expost.papers.ghosh2020.mean_stage import MeanStage
from expost.papers.quirks import Quirks
from expost.system.files import write_signed
from expost.train.settings import Training
from toys import convolutional, pictures

PIXELS = Pixels((1, 8, 8))
VAL, TEST, TRAIN = pictures(90, seed=1), pictures(100, seed=2), pictures(120, seed=3)
CONTROLS = ["control: held-out images", "control: training images", "control: jittered training images", "control: shuffled pixels"]


def scored(cache: Path, **options: object) -> Scores:
    model = convolutional().eval()
    densities = {"prior": model.prior, "gaussian": FullGaussian(2).fit(model.latents(TRAIN, at="mean"))}
    return score(model, VAL, TEST, PIXELS, densities, train=TRAIN, cache=cache, **options)  # type: ignore[arg-type]


def test_rows_are_those_of_the_paper_and_controls(tmp_path: Path) -> None:
    found = scored(tmp_path, interpolations=INTERPOLATIONS)
    assert list(found.values) == [
        "reconstruction", "samples prior", "samples gaussian", "interpolation", "interpolation linear", "interpolation norm-corrected", *CONTROLS,
    ]  # fmt: skip
    assert (found.n, found.groups) == (90, ("fd", "prd"))
    text = "\n".join(map(str, found.tables("toy")))
    assert PIXELS.label in text
    assert "control: shuffled pixels" in text
    assert found.memorisation() is None
    assert "standard errors are at most: F8 0.0" in text


def test_each_row_is_the_distance_that_it_says(tmp_path: Path) -> None:
    """Recomputed by hand: sets, sizes, midpoints."""
    found, model = scored(tmp_path, interpolations=INTERPOLATIONS, seed=4), convolutional().eval()
    reference = extract(PIXELS, scored_part(TEST, 90, "test", 4))

    def fd(x: torch.Tensor) -> float:
        return float(frechet_distance(extract(PIXELS, x.clamp(0, 1)), reference))

    z = model.latents(VAL, at="mean")
    a, b = pairs(90, 90, 4)
    assert found.values["reconstruction"] == pytest.approx(fd(model.reconstruct(VAL)), rel=1e-6)
    assert found.values["samples prior"] == pytest.approx(fd(model.generate(90, seed=4)), rel=1e-6)
    for name, way in (("", slerp), (" linear", lerp), (" norm-corrected", lerp_to_mean_norm)):
        assert found.values[f"interpolation{name}"] == pytest.approx(fd(model.decode_points(way(0.5, z[a], z[b]))), rel=1e-6)
    assert found.mse == pytest.approx(float((model.reconstruct(TEST) - TEST / 255).square().mean()), rel=1e-5)


def test_memorisation_shows_copies_beside_the_model(tmp_path: Path) -> None:
    found = scored(tmp_path, groups=("fd", "memorisation"))
    authenticity = found.of("AuthPct")
    assert authenticity["control: training images"] == 0
    assert authenticity["control: held-out images"] > 20
    table = found.memorisation()
    assert table is not None
    assert [row[0] for row in table.rows] == list(found.rows)


def test_results_survive_a_file(tmp_path: Path) -> None:
    found = scored(tmp_path, groups=("fd", "kid", "neighbours"))
    assert Scores.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_controls_are_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scored(tmp_path)
    (file,) = (tmp_path / "controls").iterdir()
    asked = []
    monkeypatch.setattr(protocol, "control_sets", lambda *a, **k: asked.append(1) or real(*a, **k))
    assert scored(tmp_path).rows["control: training images"] == first.rows["control: training images"]
    assert len(list((tmp_path / "controls").iterdir())) == 1
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"1", b"2", 1))
    assert scored(tmp_path).rows["control: training images"] == first.rows["control: training images"]
    assert file.read_bytes() == whole, "what is damaged is made again"
    kept = json.loads(whole)
    write_signed(file, {"key": kept["key"], "value": json.loads(json.dumps(kept["value"]).replace('"value": ', '"value": 1'))})
    assert scored(tmp_path).rows["control: training images"] != first.rows["control: training images"]
    assert asked  # their content names the file
    monkeypatch.setattr("expost.system.storage.code_hash", lambda *modules: "another code")
    assert scored(tmp_path).rows["control: training images"] == first.rows["control: training images"]


real = protocol.control_sets


def test_quirks_change_the_numbers_and_are_named(tmp_path: Path) -> None:
    plain, stretched = scored(tmp_path), scored(tmp_path, treatment=Quirks(stretch=True))
    assert plain.values["samples prior"] != stretched.values["samples prior"]
    assert plain.values["control: training images"] == stretched.values["control: training images"]  # real images are untouched
    assert any(note.startswith("stretch: ") for note in stretched.notes)
    assert not any(note.startswith("stretch: ") for note in plain.notes)
    sampled = scored(tmp_path, treatment=Quirks(stochastic_reconstruction=True))
    assert sampled.values["reconstruction"] != plain.values["reconstruction"]
    assert sampled.values["samples prior"] == plain.values["samples prior"]


def test_a_mean_stage_is_scored_through_both_stages(tmp_path: Path) -> None:
    model = convolutional().eval()
    stage = MeanStage(2, 0.01, 16, Training(steps=20, batch_size=30, lr=1e-3)).fit(model.latents(TRAIN, at="mean"))
    found = score(model, VAL, TEST, PIXELS, {"mean-stage": stage}, train=TRAIN, cache=tmp_path, interpolations=("norm-corrected",))
    both = stage.joined(model)
    by_hand = float(frechet_distance(extract(PIXELS, both.reconstruct(VAL).clamp(0, 1)), extract(PIXELS, scored_part(TEST, 90, "test", 0))))
    assert found.values["reconstruction through mean-stage"] == pytest.approx(by_hand, rel=1e-6)
    assert "interpolation norm-corrected through mean-stage" in found.values
    assert found.values["reconstruction"] != found.values["reconstruction through mean-stage"]


def test_bad_requests_say_what_exists(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no interpolation "cubic": choose among spherical'):
        scored(tmp_path, interpolations=("cubic",))
    with pytest.raises(ValueError, match='no group of metrics "is"'):
        scored(tmp_path, groups=("is",))


def test_norm_corrected_midpoints_have_the_mean_norm() -> None:
    a, b = torch.randn(50, 4, dtype=torch.float64), 3 * torch.randn(50, 4, dtype=torch.float64)
    middle = lerp_to_mean_norm(0.5, a, b)
    assert torch.allclose(middle.norm(dim=1), (a.norm(dim=1) + b.norm(dim=1)) / 2)
    straight = (a + b) / 2
    assert torch.allclose(middle / middle.norm(dim=1, keepdim=True), straight / straight.norm(dim=1, keepdim=True))
    assert torch.equal(lerp_to_mean_norm(0.5, a, -a), torch.zeros_like(a))


def test_mixture_densities_still_fit_in_the_protocol(tmp_path: Path) -> None:
    model = convolutional().eval()
    mixture = GMM(2, 3).fit(model.latents(TRAIN, at="mean"))
    assert "samples gmm:3" in score(model, VAL, TEST, PIXELS, {"gmm:3": mixture}, cache=tmp_path).values
