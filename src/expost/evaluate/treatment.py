"""How images are treated before they are scored: not at all, unless a score is to be reproduced as somebody's code made it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from expost.autoencoder import Autoencoder

__all__ = ["Treatment"]


class Treatment:
    """What :func:`~expost.evaluate.protocol.score` does with images: each method is the identity here, and a subclass departs from it.

    Every transform of images treats each image alone, so it also works block by block: ``Mapped(images, treatment.generated)``.
    """

    @property
    def active(self) -> bool:
        """Whether anything is done."""
        return False

    @property
    def compared(self) -> Literal["test", "validation", "training"]:
        """The split that everything is compared with."""
        return "test"

    def describe(self) -> tuple[str, ...]:
        """A sentence for everything that is done, to stand beside the scores."""
        return ()

    def generated(self, images: Tensor) -> Tensor:
        """Generated images (n, C, H, W), uint8 or floats; reconstructions and interpolations too."""
        return images

    def real(self, images: Tensor) -> Tensor:
        """Real images (n, C, H, W), uint8 or floats."""
        return images

    def validation(self, val: Tensor, train: Tensor | None = None) -> Tensor:
        """The images that are reconstructed and interpolated."""
        return val

    def reconstruct(self, model: Autoencoder, x: Tensor, *, seed: int = 0, batch_size: int = 500) -> Tensor:
        """Reconstructions of ``x``."""
        return model.reconstruct(x, batch_size=batch_size)
