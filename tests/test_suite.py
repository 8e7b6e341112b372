"""The suite: one call for all metrics; context, cache, controls, and nothing that depends on batches, order or threads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expost.evaluate.controls import CONTROLS, control_sets, jitter
from expost.evaluate.features.base import Pixels, RandomNetwork, extract
from expost.evaluate.features.sets import InMemory, Mapped
from expost.evaluate.metrics.suite import COPYING, GROUPS, QUALITY, Reference, check_groups, measure
from expost.results import Result
from expost.seeds import generator


def blobs(n: int, seed: int, shift: float = 0.0) -> Tensor:
    """uint8 images (n, 1, 8, 8) with structure: a bright blob at one of four places, noise."""
    g = generator("blobs", seed)
    place = torch.randint(0, 4, (n,), generator=g)
    x = torch.rand(n, 1, 8, 8, generator=g) * 0.3
    rows, columns = (place // 2) * 4, (place % 2) * 4
    for i in range(n):
        x[i, 0, rows[i] : rows[i] + 4, columns[i] : columns[i] + 4] += 0.5 * torch.rand(1, generator=g) + shift
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference.of(Pixels((1, 8, 8)), blobs(400, 0), blobs(600, 1), name="blobs test", cache=tmp_path_factory.mktemp("cache"))


def features(x: Tensor) -> Tensor:
    return extract(Pixels((1, 8, 8)), x)


def test_every_metric_is_there_with_its_context(reference: Reference) -> None:
    found = measure(features(blobs(400, 2)), reference, name="fresh", seed=3)
    assert set(found) == {*QUALITY, *COPYING}
    for result in found.values():
        assert result.context["extractor"] == reference.extractor == Pixels((1, 8, 8)).identity
        assert (result.context["generated"], result.context["reference"], result.context["seed"]) == ("fresh", "blobs test", 3)
        assert (result.context["n generated"], result.context["n reference"], result.context["n train"]) == (400, 400, 600)
        assert result.context["version"]
    assert found["FD"].details.keys() >= {"mean_term", "covariance_term", "rank"}
    assert any("400" in note for note in found["FD"].notes)  # too few to compare with the literature


INDEPENDENT = {"FD∞", "KID"}


@pytest.mark.parametrize(
    ("generated", "note"),
    [
        (lambda: blobs(400, 0), "400 of the generated images are in the reference set: FD∞ and KID assume independent sets"),
        (lambda: torch.cat([blobs(370, 2), blobs(400, 0)[:30]]), "30 of the generated images are in the reference set"),
        (lambda: torch.cat([blobs(399, 2), blobs(400, 0)[7:8]]), "1 of the generated images are in the reference set"),
        (lambda: blobs(200, 2).repeat_interleave(2, 0), "200 of the generated images repeat others of their set: FD∞ and KID assume"),
        (lambda: blobs(1, 2).expand(400, -1, -1, -1), "399 of the generated images repeat others"),
    ],
    ids=["the same", "thirty", "one", "twice", "one image"],
)
def test_sets_that_share_or_repeat_images_are_noticed(reference: Reference, generated: Callable[[], Tensor], note: str) -> None:
    """Estimates that assume independence are left out, the others stay, and the reason is in the results; also where nothing else was asked for."""
    x = features(generated())
    found = measure(x, reference, name="kin", groups=("fd", "kid", "neighbours"))
    assert set(found) == {*QUALITY} - INDEPENDENT - {"F8", "F1/8"}
    assert any(text.startswith(note) for text in found["FD"].notes)
    alone = measure(x, reference, name="kin", groups=("kid",))["KID"]
    assert alone.to_json()["value"] is None
    assert "KID = - (n = 400)" in str(alone)
    assert any(text.startswith(note) for text in alone.notes)
    assert math.isnan(Result.from_json(alone.to_json()).value)
    untrained = dataclasses.replace(reference, train=None)
    assert set(measure(x, untrained, name="kin", groups=("kid", "memorisation"))) == {"KID"}


def test_a_repeated_reference_and_a_repeated_image_of_a_large_set(tmp_path: Path) -> None:
    twice = Reference.of(Pixels((1, 8, 8)), blobs(200, 0).repeat(2, 1, 1, 1), cache=tmp_path)
    found = measure(features(blobs(400, 2)), twice, name="x", groups=("fd", "kid"))
    assert set(found) == {"FD"}
    assert any(note.startswith("200 of the reference images repeat others") for note in found["FD"].notes)
    one = torch.cat([blobs(399, 0), blobs(399, 0)[:1]])  # as it happens in published sets: said, and of no consequence
    found = measure(features(blobs(400, 2)), Reference.of(Pixels((1, 8, 8)), one, cache=tmp_path), name="x", groups=("fd", "kid"))
    assert {"FD", *INDEPENDENT} == set(found)
    assert "1 of the reference images repeat others of their set" in found["FD"].notes
    fresh = measure(features(blobs(400, 2)), Reference.of(Pixels((1, 8, 8)), blobs(400, 0), cache=tmp_path), name="x", groups=("fd", "kid"))
    assert not any("repeat" in note or "reference set" in note for result in fresh.values() for note in result.notes)


def test_reference_images_seen_in_training(tmp_path: Path) -> None:
    """C_T of fresh images against a test set that is the training set says that they underfit."""
    seen = Reference.of(Pixels((1, 8, 8)), blobs(400, 0), blobs(400, 0), cache=tmp_path)
    found = measure(features(blobs(400, 2)), seen, name="fresh", groups=("memorisation", "fld"))
    assert set(found) == {"AuthPct", "NN ratio"}
    assert "400 of the reference images are in the training set: C_T, copy distance and FLD assume unseen ones" in found["AuthPct"].notes


def test_repeating_the_training_set_changes_nothing_about_copying(tmp_path: Path) -> None:
    """Samples that differ from training images by a grey level are copies, however often each of these occurs."""
    train, test = blobs(300, 1), blobs(300, 0)
    near = (train.int() + torch.randint(-1, 2, train.shape, generator=generator("near"))).clamp(0, 255).to(torch.uint8)
    groups = ("memorisation", "fld")
    once, *repeated = (
        measure(features(near), Reference.of(Pixels((1, 8, 8)), test, seen, cache=tmp_path), name="near", groups=groups)
        for seen in (train, train.repeat_interleave(2, 0), train.repeat(3, 1, 1, 1), torch.cat([train, train[:1].expand(50, -1, -1, -1)]))
    )
    assert (once["AuthPct"].value, once["NN ratio"].value) == (0, 100)
    assert set(once) == {*COPYING}
    for found, copies in zip(repeated, (300, 600, 50), strict=True):
        assert {m: (r.value, r.error) for m, r in found.items()} == {m: (r.value, r.error) for m, r in once.items()}
        assert any(note.startswith(f"{copies} of the training images repeat others") for note in found["AuthPct"].notes)


def test_groups_are_asked_for_by_name(reference: Reference) -> None:
    assert set(measure(features(blobs(400, 2)), reference, name="x", groups=("prd",))) == {"F8", "F1/8"}
    assert check_groups(reversed(GROUPS)) == GROUPS
    with pytest.raises(ValueError, match='no group of metrics "fid"'):
        check_groups(("fid",))


def test_without_training_features_nothing_is_said_of_memorisation(tmp_path: Path) -> None:
    alone = Reference.of(Pixels((1, 8, 8)), blobs(400, 0), cache=tmp_path)
    assert set(measure(features(blobs(400, 2)), alone, name="x")) == set(QUALITY)


def test_known_answers_side_by_side(reference: Reference) -> None:
    """Fresh data, copies, one image repeated, images off the data: each metric must tell them apart in the right direction."""
    fresh = measure(features(blobs(400, 2)), reference, name="fresh")
    copies = measure(features(blobs(600, 1)[:400]), reference, name="copies")
    collapsed = measure(features(blobs(400, 0)[:1].expand(400, -1, -1, -1)), reference, name="collapsed")
    off = measure(features(blobs(400, 4, shift=0.3)), reference, name="off")
    assert copies["AuthPct"].value == 0
    assert 30 < fresh["AuthPct"].value < 80
    assert copies["copy distance"].value == 0
    assert fresh["copy distance"].value == pytest.approx(1, abs=0.1)
    assert copies["C_T"].value < -5 < fresh["C_T"].value < 5 < off["C_T"].value
    assert copies["FLD gap"].value < fresh["FLD gap"].value
    assert collapsed["precision"].value > 0.99
    assert collapsed["recall"].value < 0.05  # a swap of the arguments would exchange the two
    assert collapsed["F1/8"].value > collapsed["F8"].value
    assert fresh["FD"].value < off["FD"].value < collapsed["FD"].value
    assert fresh["KID"].value < off["KID"].value
    assert off["precision"].value < fresh["precision"].value


def test_same_numbers_for_batch_sizes_order_and_threads(tmp_path: Path) -> None:
    judge = RandomNetwork((1, 8, 8), dim=16).calibrated(blobs(200, 5))
    real, made = extract(judge, blobs(300, 0)), extract(judge, blobs(300, 2), batch_size=100)
    reference = Reference.of(judge, blobs(300, 0), blobs(400, 1), cache=tmp_path)
    base = measure(made, reference, name="x")
    order = torch.randperm(300, generator=generator("order"))
    shuffled = Reference(judge.identity, judge.label, "real", real[order], reference.train, tmp_path)
    variants = {"shuffled": measure(made[order.flip(0)], shuffled, name="x")}
    torch.set_num_threads(2)
    try:
        variants["two threads"] = measure(made, reference, name="x")
    finally:
        torch.set_num_threads(1)
    for size in (1, 10_000):
        variants[f"batches of {size}"] = measure(extract(judge, blobs(300, 2), batch_size=size), reference, name="x")
    for name, found in variants.items():
        for metric, result in base.items():
            if name.startswith("batches") and metric in ("FD∞", "F8", "F1/8", "C_T", "FLD", "FLD gap"):
                tolerance = {"abs": 4 * (result.error or 0) + 1e-6}  # features that differ by rounding lead to other subsets and starts
            else:
                tolerance = {"rel": 1e-4, "abs": 1e-6}
            assert found[metric].value == pytest.approx(result.value, **tolerance), (name, metric)


def test_distances_between_real_images_are_kept_by_content(tmp_path: Path) -> None:
    first = Reference.of(Pixels((1, 8, 8)), blobs(100, 0), blobs(150, 1), cache=tmp_path)
    radii = first.neighbours.radii
    files = sorted((tmp_path / "neighbours").iterdir())
    assert len(files) == 1
    again = Reference.of(Pixels((1, 8, 8)), blobs(100, 0), blobs(150, 1), cache=tmp_path)
    assert torch.equal(again.neighbours.radii, radii)
    other = Reference.of(Pixels((1, 8, 8)), blobs(100, 3), blobs(150, 1), cache=tmp_path)
    assert not torch.equal(other.neighbours.radii, radii)
    assert len(list((tmp_path / "neighbours").iterdir())) == 2


def test_jitter_moves_by_one_pixel_and_repeats_the_border() -> None:
    x = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(200, 1, 8, 8)
    moved = jitter(x, seed=1)
    assert torch.equal(moved, jitter(x, seed=1))
    steps = set()
    for image in moved[:, 0]:
        rows, columns = divmod(int(image[4, 4]), 8)
        steps.add((rows - 4, columns - 4))
        expected = torch.arange(64).reshape(8, 8)[(torch.arange(8) + rows - 4).clamp(0, 7)][:, (torch.arange(8) + columns - 4).clamp(0, 7)]
        assert torch.equal(image.long(), expected)
    assert steps == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)} - {(0, 0)}


def test_control_sets_are_what_they_are_called() -> None:
    held_out, train = blobs(50, 0), blobs(80, 1)
    sets = control_sets(held_out, train, 40, seed=2)
    assert tuple(sets) == CONTROLS
    assert all(x.shape == (40, 1, 8, 8) for x in sets.values())
    fresh = sets["held-out images"]
    assert {tuple(row.tolist()) for row in fresh.flatten(1)} <= {tuple(row.tolist()) for row in held_out.flatten(1)}
    flat = {tuple(row.tolist()) for row in train.flatten(1)}
    assert all(tuple(row.tolist()) in flat for row in sets["training images"].flatten(1))
    assert not any(tuple(row.tolist()) in flat for row in sets["jittered training images"].flatten(1))
    assert torch.equal(sets["shuffled pixels"].flatten(1).sort(1).values, fresh.flatten(1).sort(1).values)


def test_a_mapped_set_gives_the_features_of_its_images() -> None:
    from expost.evaluate.features.sets import set_features

    x = blobs(30, 0)
    found = set_features(Pixels((1, 8, 8)), Mapped(InMemory(x), lambda b: 255 - b))
    assert torch.allclose(found, 1 - features(x))


def test_what_cannot_be_said_is_left_out_with_the_reason(tmp_path: Path) -> None:
    """A generator that has collapsed far from all test points fills no cell of C_T; the others are still measured."""
    white = torch.randint(240, 256, (100, 1, 8, 8), generator=generator("white")).to(torch.uint8)
    train = torch.cat([blobs(300, 1), white])
    reference = Reference.of(Pixels((1, 8, 8)), blobs(200, 0), train, cache=tmp_path)
    found = measure(features(torch.full((200, 1, 8, 8), 254, dtype=torch.uint8)), reference, name="white", groups=("memorisation",))
    assert "C_T" not in found
    assert any(note.startswith("no C_T: no cell holds") for note in found["AuthPct"].notes)
    assert {"NN ratio", "copy distance"} <= found.keys()
