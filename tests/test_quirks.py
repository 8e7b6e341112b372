"""Quirks: known answers for every transform, sentences for every flag, and a parser that helps."""

from __future__ import annotations

import io
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from expost.evaluate.features.sets import InMemory, Mapped
from expost.papers.quirks import Quirks
from toys import convolutional, pictures

FLAGS = [f.name for f in fields(Quirks)]


def line(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


def on(name: str) -> Quirks:
    return Quirks(jpeg=75) if name == "jpeg" else Quirks(**{name: True})


def test_nothing_is_done_by_default() -> None:
    x = torch.rand(3, 3, 4, 4)
    none = Quirks()
    assert none.generated(x) is x
    assert none.real(x) is x
    assert none.validation(x) is x
    assert none.compared == "test"
    assert (none.active, none.describe(), str(none), repr(none)) == (False, (), "none", "Quirks()")
    assert Quirks.parse(" ") == none


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_says_what_it_does_and_survives_the_command_line(name: str) -> None:
    quirks = on(name)
    assert quirks.active
    (sentence,) = quirks.describe()
    assert sentence.startswith(str(quirks) + ": ")
    assert any(source in sentence for source in ("dai2019's", "ghosh2020's")) or name == "eight_bit"
    assert any(word in sentence for word in ("lowers", "raises", "shifts", "favours", "darker", "either sign")), (
        "the direction of the effect"
    )
    assert Quirks.parse(str(quirks)) == quirks == Quirks.parse(str(quirks).replace("-", "_").upper())


def test_stretch_takes_each_generated_image_to_its_full_range() -> None:
    x = torch.cat([line(0.25, 0.5, 0.75), line(0.5, 0.5, 0.5), line(-1.0, 0.0, 3.0)])
    expected = torch.cat([line(0, 0.5, 1), line(0, 0, 0), line(0, 0.25, 1)])
    assert torch.equal(Quirks(stretch=True).generated(x), expected)
    assert torch.equal(Quirks(stretch=True).real(x), x), "real images are left alone: that is the quirk"
    colours = torch.tensor([0.2, 0.4, 0.6]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(Quirks(stretch=True).generated(colours).flatten(), torch.tensor([0, 0.5, 1])), "all channels together"
    assert torch.equal(Quirks(stretch=True).generated(torch.tensor([51, 102], dtype=torch.uint8).reshape(1, 1, 1, 2)), line(0, 1))


def test_grey_levels_are_rounded_or_cut() -> None:
    x = line(-0.1, 0.9 / 255, 1.4 / 255, 1.6 / 255, 254.9 / 255, 1.2)
    assert Quirks(eight_bit=True).generated(x).flatten().tolist() == [0, 1, 1, 2, 255, 255]
    assert Quirks(truncate=True).generated(x).flatten().tolist() == [0, 0, 1, 1, 254, 255]
    assert Quirks(eight_bit=True).real(x).dtype == torch.uint8
    assert Quirks(truncate=True).real(x) is x
    stored = pictures(3)
    for quirks in (Quirks(eight_bit=True), Quirks(truncate=True)):
        assert torch.equal(quirks.generated(stored), stored)
        assert torch.equal(quirks.real(stored), stored)
    both = Quirks(stretch=True, eight_bit=True)
    assert both.generated(line(0.25, 0.5, 0.75)).flatten().tolist() == [0, 128, 255], "stretched first, then written"


def test_jpeg_is_pils() -> None:
    from PIL import Image

    for channels in (1, 3):
        x = torch.randint(256, (3, channels, 16, 12), dtype=torch.uint8)
        through = Quirks(jpeg=75).real(x)
        for before, after in zip(x, through, strict=True):
            file = io.BytesIO()
            array = before.permute(1, 2, 0).numpy()
            Image.fromarray(array.squeeze(-1) if channels == 1 else array).save(file, "jpeg", quality=75)
            assert np.array_equal(np.asarray(Image.open(file)).reshape(16, 12, channels), after.permute(1, 2, 0).numpy())
        assert Quirks(jpeg=75).generated(x) is x
        errors = [float((Quirks(jpeg=q).real(x).float() - x).square().mean()) for q in (95, 75, 20)]
        assert errors == sorted(errors)
        assert 0 < errors[0] < errors[2]
    flat = torch.full((1, 1, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(Quirks(jpeg=75).real(flat), flat)
    assert torch.equal(Quirks(jpeg=75).real(flat.float() / 255), flat)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        Quirks(jpeg=75).real(torch.rand(1, 4, 8, 8))


def test_the_first_channel_is_repeated_in_real_images_only() -> None:
    x = pictures(4).repeat(1, 3, 1, 1) // torch.tensor([1, 2, 3], dtype=torch.uint8)[None, :, None, None]
    grey = Quirks(first_channel=True).real(x)
    assert torch.equal(grey, x[:, :1].repeat(1, 3, 1, 1))
    assert Quirks(first_channel=True).generated(x) is x
    through = Quirks(first_channel=True, jpeg=30).real(x)
    assert torch.equal(through, Quirks(jpeg=30).real(x)[:, :1].repeat(1, 3, 1, 1)), "data are prepared before they are scored"


def test_transforms_treat_every_image_alone() -> None:
    x = torch.rand(9, 3, 8, 8)
    quirks = Quirks.parse("stretch,jpeg=50,first-channel,eight-bit")
    for function in (quirks.generated, quirks.real):
        images = Mapped(InMemory(x), function)
        assert torch.equal(torch.cat([images.read(a, a + 3) for a in (0, 3, 6)]), function(x))


def test_validation_images_overlap_the_training_images() -> None:
    train, val = torch.arange(10_003.0).reshape(-1, 1, 1, 1), torch.arange(4.0).reshape(-1, 1, 1, 1) - 9
    quirks = Quirks(overlapping_validation=True)
    assert quirks.validation(val, train).flatten().tolist() == [10_000, 10_001, 10_002, -9, -8, -7, -6]
    with pytest.raises(ValueError, match="pass them as train"):
        quirks.validation(val)
    with pytest.raises(ValueError, match="there are 10000: leave it out"):
        quirks.validation(val, train[:10_000])


def test_the_reference_is_the_set_that_was_named() -> None:
    assert [q.compared for q in (Quirks(), Quirks(validation_reference=True), Quirks(training_reference=True))] == [
        "test",
        "validation",
        "training",
    ]


def test_reconstructions_are_sampled_if_asked() -> None:
    model, x = convolutional(), pictures(6)
    assert torch.equal(Quirks().reconstruct(model, x), model.reconstruct(x))
    quirks = Quirks(stochastic_reconstruction=True)
    drawn = quirks.reconstruct(model, x, seed=4)
    assert torch.equal(drawn, model.decode_points(model.latents(x, at="sample", seed=4)))
    assert torch.equal(drawn, quirks.reconstruct(model, x, seed=4))
    assert not torch.equal(drawn, quirks.reconstruct(model, x, seed=5))
    assert not torch.equal(drawn, model.reconstruct(x))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("strech", r'no quirk called "strech": did you mean stretch\?'),
        ("first-chanel", r"did you mean first-channel\?"),
        ("zzz", r"there are stretch, jpeg, first-channel"),
        ("jpeg", "jpeg needs a quality"),
        ("jpeg=high", 'not "high"'),
        ("jpeg=0", "from 1 to 95, not 0"),
        ("jpeg=96", "from 1 to 95, not 96"),
        ("stretch=1", 'takes no value, not "1"'),
        ("stretch,stretch", "given twice"),
        ("eight-bit,truncate", "exclude each other"),
        ("training-reference,validation-reference", "exclude each other"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Quirks.parse(text)


def test_bad_images_are_refused() -> None:
    for function in (Quirks(stretch=True).generated, Quirks(first_channel=True).real):
        with pytest.raises(ValueError, match=r"\(n, C, H, W\)"):
            function(torch.rand(3, 3))
        with pytest.raises(ValueError, match="NaN"):
            function(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="whole number"):
        Quirks(jpeg=True)
