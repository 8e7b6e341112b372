"""Principal components of pixels as features: the linear baseline between raw pixels and a network.

With mean μ and covariance of training images (pixels in [0, 1], flattened to D numbers), component u_k is the k-th eigenvector of the
covariance, and the features of an image x are

    f_k(x) = u_kᵀ(x − μ) / s,    k = 1 ... K,    s² = Σ_k λ_k (n − 1)/n,

so that they have mean square norm 1 on the training images (Jolliffe 2002, "Principal component analysis"). A Fréchet distance of these features
compares the first two moments of images in the K directions in which training images vary most, and sees nothing else: a generator of blurred
images can look perfect. What it offers is that it needs no labels and no network, and that with K small against the number of images its bias
is small, where that of the pixels is large.

An eigenvector's sign is arbitrary; here its largest entry is positive. Within a group of nearly equal eigenvalues the directions are arbitrary
too, and the hash tells: extractors fitted on different machines can bear different hashes though their distances agree to many digits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expost.evaluate.features.base import Extractor, Shape, images
from expost.seeds import some
from expost.system.hashes import state_hash

__all__ = ["PCAFeatures"]

#: Images used to find components, unless told otherwise: memory and time of one eigenproblem of at most this size.
LIMIT = 4096


@dataclass(frozen=True, eq=False)
class PCAFeatures(Extractor):
    """The first K principal components of training images; made by :meth:`of`.

    Args:
        shape: (C, H, W).
        mean: (D,) float64, D = C·H·W.
        components: (K, D) float64, orthonormal rows.
        scale: s, by which features are divided.
        variances: (K,) float64, variance of the training images along each component (unbiased); for information.
        total: their variance in all directions.

    >>> x = torch.tensor([[0.0, 0.5], [1.0, 0.5]]).reshape(2, 1, 1, 2)
    >>> PCAFeatures.of(x, dim=1)(x).tolist()
    [[-1.0], [1.0]]
    """

    shape: Shape
    mean: Tensor = field(repr=False)
    components: Tensor = field(repr=False)
    scale: float
    variances: Tensor | None = field(default=None, repr=False)
    total: float | None = None
    name: str = field(init=False)
    hash: str = field(init=False)
    dim: int = field(init=False)

    def __post_init__(self) -> None:
        size = self.shape[0] * self.shape[1] * self.shape[2]
        mean, components = self.mean.detach().to(torch.float64), self.components.detach().to(torch.float64)
        if mean.shape != (size,) or components.dim() != 2 or components.shape[1] != size or not 1 <= len(components) <= size:
            raise ValueError(
                f"images of shape {tuple(self.shape)} need a mean of shape ({size},) and components (K, {size}), not {tuple(mean.shape)} and "
                f"{tuple(components.shape)}: use PCAFeatures.of(images)"
            )
        product = components @ components.T
        if not (
            mean.isfinite().all()
            and torch.allclose(product, torch.eye(len(product), dtype=product.dtype, device=product.device), atol=1e-6)
        ):
            raise ValueError("the components are not orthonormal rows, or the mean is not finite: use PCAFeatures.of(images)")
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"the scale must be positive, not {self.scale}: use PCAFeatures.of(images)")
        config = {"kind": "pca", "shape": list(self.shape), "scale": float(self.scale)}
        values = {
            "shape": tuple(self.shape), "mean": mean, "components": components, "dim": len(components), "name": f"pca-{len(components)}",
            "hash": state_hash({"mean": mean, "components": components}, config),
        }  # fmt: skip
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @classmethod
    def of(cls, train_images: Tensor, dim: int = 64, *, limit: int | None = LIMIT) -> PCAFeatures:
        """The first ``dim`` components of training images (n, C, H, W), uint8 or floats in [0, 1].

        Args:
            dim: K; at most the number of directions in which the images vary.
            limit: so many images are used at most, chosen by a fixed permutation; None for all. The eigenproblem has the size of the smaller of
                their number and D, and memory is a few copies of them in float64.

        Raises:
            ValueError: too few images, or images that vary in fewer than ``dim`` directions.
        """
        if train_images.dim() != 4:
            raise ValueError(f"images must be of shape (n, C, H, W), not {tuple(train_images.shape)}: reshape them")
        if dim < 1:
            raise ValueError(f"the number of components must be at least 1, not {dim}")
        if limit is not None:
            train_images = some(train_images, max(limit, 2), "pca")
        n, c, h, w = train_images.shape
        if n < 2:
            raise ValueError(f"principal components need at least 2 images, not {n}: pass more")
        rows = images(train_images).flatten(1).to("cpu", torch.float64)
        mean = rows.mean(0)
        rows -= mean
        wide = n < rows.shape[1]
        values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
        values, vectors = values.flip(0), vectors.flip(1)
        rank = int((values > values[0].clamp(min=0) * max(rows.shape) * torch.finfo(torch.float64).eps).sum())
        if rank < dim:
            raise ValueError(
                f"{n} images that vary in {rank} directions have no {dim} components: give dim={rank} at most (pca:{rank}), or more images"
            )
        found = vectors[:, :dim].T
        if wide:  # eigenvectors of the smaller matrix, turned into those of the covariance
            found = torch.linalg.qr((found @ rows).T).Q.T
        size = found.abs()
        largest = (
            (size > size.amax(1, keepdim=True) * (1 - 1e-6)).to(torch.uint8).argmax(1)
        )  # the first, where entries are equal but for round-off
        found = found * found.gather(1, largest[:, None]).sign()
        scale = float((rows @ found.T).square().sum(1).mean().sqrt())
        return cls((c, h, w), mean, found.contiguous(), scale, values[:dim] / (n - 1), float(rows.square().sum() / (n - 1)))

    @property
    def explained(self) -> float:
        """Share of the training images' variance that the components hold."""
        if self.variances is None or self.total is None:
            raise ValueError("these components were not fitted here, so their share of the variance is unknown: use PCAFeatures.of(images)")
        return float(self.variances.sum()) / self.total

    def to(self, device: torch.device | str) -> PCAFeatures:
        place = torch.empty(0, device=device).device
        if place == self.mean.device or place.type == "mps":  # Apple's GPUs have no float64: computed on the CPU
            return self
        twin = copy.copy(self)
        for name in ("mean", "components"):
            object.__setattr__(twin, name, getattr(self, name).to(place))
        return twin

    def features(self, x: Tensor) -> Tensor:
        """In float64, so that a feature does not depend on the batch beyond the last bit of float32."""
        return (x.flatten(1).to(self.mean.device).to(torch.float64) - self.mean) @ self.components.T / self.scale
