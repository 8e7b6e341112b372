"""Where the code behind published scores departs from the papers' text: flags, all off, each a transform of images or a choice of a set.

Scores of different papers were computed on differently treated images, and a few grey levels move a Fréchet distance by more than a good idea
does. Nothing here is recommended. The flags are for one purpose: to reproduce a published number as it was made, and to see what the
treatment alone was worth. dai2019 is Dai and Wipf 2019 ("Diagnosing and enhancing VAE models", github.com/daib13/TwoStageVAE), ghosh2020 Ghosh et al.
2020 ("From variational to deterministic autoencoders", github.com/ParthaEth/Regularized_autoencoders-RAE-).

Every transform of images treats each image alone, so it also works block by block: ``sets.Mapped(images, quirks.generated)``.
"""

from __future__ import annotations

import difflib
import io
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.evaluate.treatment import Treatment
from expost.tensors import check_finite, unit

__all__ = ["Quirks"]

#: Where ghosh2020 begins its "validation" images.
OVERLAP = 10_000

_SENTENCES = {
    "stretch": "stretch: every generated image is min-max stretched to [0, 1] and real ones are not (dai2019's repository, fid_score.py); "
    "restores the contrast of washed-out samples, so it usually lowers their distance",
    "jpeg": "jpeg={}: real images were written as JPEG of this quality and read back, generated ones not (dai2019's preprocess.py, on CIFAR-10, at "
    "PIL's default of 75); real images lose fine detail, as those of autoencoders do, which shifts the distance",
    "first_channel": "first-channel: real images are their first channel, repeated (ghosh2020's cached CIFAR-10 statistics, fid_from_dir_computer.py); "
    "colour in generated images counts against them, so it usually raises the distance",
    "eight_bit": "eight-bit: images are clipped to [0, 1] and rounded to 8-bit grey levels, as a picture file does; a small effect of either sign",
    "truncate": "truncate: generated images are clipped to [0, 1] and cut down to 8-bit grey levels (ghosh2020's PNG files, save_batches_of_images.py); "
    "they become darker by half a level on average, and a background just below 0 or 1/255 becomes black",
    "stochastic_reconstruction": "stochastic-reconstruction: VAE reconstructions are decoded from a sample of q(z | x), not from its mean (dai2019's and "
    "ghosh2020's repositories); usually raises the distance and the error of reconstructions",
    "overlapping_validation": "overlapping-validation: \"validation\" images are the training images from number 10 000 on, of which most were "
    "trained on (ghosh2020's repository, MNIST and CIFAR-10); lowers the distance of reconstructions and interpolations",
    "training_reference": "training-reference: the reference is training images, not the test set (ghosh2020's CIFAR-10 statistics as its main program "
    "makes them); lowers the distance of a model that copies its training data",
    "validation_reference": "validation-reference: the reference is validation images, not the test set (ghosh2020's precision and recall); favours "
    "reconstructions of the very same images",
}  # fmt: skip


@dataclass(frozen=True)
class Quirks(Treatment):
    """Flags of what papers' code did to images before scoring; ``Quirks()`` does nothing.

    Attributes:
        stretch: each generated image x becomes (x - min x) / (max x - min x), all channels together; a constant image becomes 0.
        jpeg: quality (1 ... 95) at which real images are written as JPEG and read back; 75 is dai2019's.
        first_channel: real images become their first channel, repeated.
        eight_bit: images are clipped to [0, 1] and rounded to 8-bit levels; real ones too, if they are floats.
        truncate: generated images are clipped to [0, 1] and cut down, not rounded, to 8-bit levels.
        stochastic_reconstruction: reconstruct from a sample of the posterior.
        overlapping_validation: take validation images from the training images.
        training_reference, validation_reference: compare with training or validation images in place of the test set.

    >>> Quirks.parse("stretch, jpeg=75")
    Quirks(stretch, jpeg=75)
    >>> Quirks(stretch=True).generated(torch.tensor([0.25, 0.5]).reshape(1, 1, 1, 2)).flatten().tolist()
    [0.0, 1.0]
    """

    stretch: bool = False
    jpeg: int | None = None
    first_channel: bool = False
    eight_bit: bool = False
    truncate: bool = False
    stochastic_reconstruction: bool = False
    overlapping_validation: bool = False
    training_reference: bool = False
    validation_reference: bool = False

    def __post_init__(self) -> None:
        if self.jpeg is not None and not (isinstance(self.jpeg, int) and not isinstance(self.jpeg, bool) and 1 <= self.jpeg <= 95):
            raise ValueError(f"the quality of a JPEG must be a whole number from 1 to 95, not {self.jpeg!r}: dai2019's is jpeg=75")
        for one, other in (("eight_bit", "truncate"), ("training_reference", "validation_reference")):
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"{_spelled(one)} and {_spelled(other)} exclude each other: choose one")

    @classmethod
    def parse(cls, text: str) -> Quirks:
        """From a command line: names joined by commas, hyphens or underscores alike, e.g. ``"stretch,jpeg=75,first-channel"``.

        Raises:
            ValueError: an unknown name (with the closest ones), one given twice, or a value where there is none.
        """
        known = [f.name for f in fields(cls)]
        values: dict[str, bool | int] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            given, equals, value = (p.strip() for p in part.partition("="))
            name = given.lower().replace("-", "_")
            if name not in known:
                close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(map(_spelled, close))}?" if close else f"there are {', '.join(map(_spelled, known))}"
                raise ValueError(f'there is no quirk called "{given}": {hint}')
            if name in values:
                raise ValueError(f"{_spelled(name)} is given twice: keep one of them")
            if name == "jpeg":
                if not value.isdecimal():
                    raise ValueError(f'jpeg needs a quality, a whole number from 1 to 95, not "{value}": dai2019\'s is jpeg=75')
                values[name] = int(value)
            elif equals:
                raise ValueError(f'{_spelled(name)} takes no value, not "{value}": leave out "={value}"')
            else:
                values[name] = True
        return cls(**values)  # type: ignore[arg-type]

    @property
    def active(self) -> bool:
        """Whether anything departs from the papers' text."""
        return self != Quirks()

    def describe(self) -> tuple[str, ...]:
        """One sentence for every flag that is on: what it does, whose code did it, and which way it moves the score."""
        return tuple(_SENTENCES[f.name].format(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name))

    def __str__(self) -> str:
        on = [_spelled(f.name) + (f"={self.jpeg}" if f.name == "jpeg" else "") for f in fields(self) if getattr(self, f.name)]
        return ",".join(on) or "none"

    def __repr__(self) -> str:
        return f"Quirks({', '.join(str(self).split(',')) if self.active else ''})"

    def generated(self, images: Tensor) -> Tensor:
        """Generated images (n, C, H, W), uint8 or floats, as the flags treat them; reconstructions and interpolations too."""
        if not (self.stretch or self.eight_bit or self.truncate):
            return images
        x = _checked(images)
        if self.stretch:
            x = unit(x)
            flat = x.flatten(1)
            low = flat.amin(1)[:, None, None, None]
            spread = flat.amax(1)[:, None, None, None] - low
            x = (x - low) / torch.where(spread > 0, spread, 1)
        if x.dtype != torch.uint8 and (self.eight_bit or self.truncate):
            x = _rounded(x) if self.eight_bit else x.clamp(0, 1).mul(255).to(torch.uint8)
        return x

    def real(self, images: Tensor) -> Tensor:
        """Real images (n, C, H, W), uint8 or floats, as the flags treat them."""
        if not (self.jpeg is not None or self.first_channel or self.eight_bit):
            return images
        x = _checked(images)
        if x.dtype != torch.uint8 and (self.eight_bit or self.jpeg is not None):
            x = _rounded(x)
        if self.jpeg is not None:
            x = _through_jpeg(x, self.jpeg)
        return x[:, :1].expand_as(x).contiguous() if self.first_channel else x

    def validation(self, val: Tensor, train: Tensor | None = None) -> Tensor:
        """``val``; or, with ``overlapping_validation``, the training images from number 10 000 on, then ``val``.

        ghosh2020 reads x_train[10000:] of all images that the data set has for training; here these are ``train``, and ``val`` held out from its end.
        """
        if not self.overlapping_validation:
            return val
        if train is None:
            raise ValueError("overlapping-validation takes validation images from the training images: pass them as train")
        if len(train) <= OVERLAP:
            raise ValueError(
                f"overlapping-validation takes training images from number 10 000 on, and there are {len(train)}: leave it out"
            )
        return torch.cat([train[OVERLAP:], val])

    @property
    def compared(self) -> Literal["test", "validation", "training"]:
        return "training" if self.training_reference else "validation" if self.validation_reference else "test"

    def reconstruct(self, model: Autoencoder, x: Tensor, *, seed: int = 0, batch_size: int = 500) -> Tensor:
        """``model.reconstruct(x)``; or, with ``stochastic_reconstruction``, decoded from one sample of each posterior."""
        if not self.stochastic_reconstruction:
            return model.reconstruct(x, batch_size=batch_size)
        return model.decode_points(model.latents(x, at="sample", seed=seed, batch_size=batch_size), batch_size=batch_size)


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _checked(images: Tensor) -> Tensor:
    if images.dim() != 4:
        raise ValueError(f"images must be of shape (n, C, H, W), not {tuple(images.shape)}: reshape them")
    check_finite(images, "images")
    return images


def _rounded(x: Tensor) -> Tensor:
    """uint8 of floats, clipped to [0, 1]."""
    return x.clamp(0, 1).mul(255).round().to(torch.uint8)


def _through_jpeg(x: Tensor, quality: int) -> Tensor:
    """uint8 images written as JPEG and read back, with PIL's defaults but for the quality."""
    from expost.data.source import need

    image = need("PIL.Image", "Pillow", "jpeg")
    if x.shape[1] not in (1, 3):
        raise ValueError(f"JPEG holds 1 or 3 channels, not {x.shape[1]}: leave out jpeg")
    import numpy as np

    out = np.empty((len(x), *x.shape[2:], x.shape[1]), np.uint8)
    for row, pixels in zip(out, x.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
        file = io.BytesIO()
        image.fromarray(pixels[..., 0] if x.shape[1] == 1 else np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality)
        with image.open(file) as picture:
            row[:] = np.asarray(picture).reshape(row.shape)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous().to(x.device)
