"""The small convolutional network behind the classifier and the random features.

A stem, then convolutions and poolings until at most 7 x 7 positions are left, then one ReLU layer (the features) and one linear layer
(the logits). Batch normalisation makes the short training of ``classifier.py`` work; in evaluation mode it is a constant affine map, so an
image's features do not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SmallConvNet"]


class SmallConvNet(nn.Module):
    """Images (n, C, H, W) float32 -> features (n, ``features``) -> logits (n, ``classes``).

    Args:
        shape: (C, H, W), at least 4 x 4.
        classes: number of logits.
        features: size of the ReLU layer before the logits.
        width: channels of the first layers; doubled once and, for larger images, doubled again (at most 128).

    Weights are torch's defaults, drawn from the global generator: build it inside ``seeded(...)``.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, features: int = 128, width: int = 32) -> None:
        super().__init__()
        channels, height, width_px = shape
        side = min(height, width_px)
        if side < 4:
            raise ValueError(f"images of {height} x {width_px} are too small for convolutions (4 x 4 at least): use extractor=pixels")
        layers: list[nn.Module] = []

        def convolution(i: int, o: int, kernel: int = 3, stride: int = 1) -> None:
            conv = nn.Conv2d(i, o, kernel, stride, 1, bias=False, dtype=torch.float32)
            layers.extend([conv, nn.BatchNorm2d(o, dtype=torch.float32), nn.ReLU(inplace=True)])

        if side > 16:
            convolution(channels, width, kernel=4, stride=2)
            side //= 2
        else:
            convolution(channels, width)
        convolution(width, width)
        layers.append(nn.MaxPool2d(2))
        side //= 2
        last = 2 * width
        convolution(width, last)
        while side > 7:
            layers.append(nn.MaxPool2d(2))
            side //= 2
            convolution(last, min(4 * width, 128))
            last = min(4 * width, 128)
        self.body = nn.Sequential(*layers)
        with torch.no_grad():
            flat = self.body.eval()(torch.zeros(1, *shape, dtype=torch.float32)).numel()
        self.penultimate = nn.Linear(flat, features, dtype=torch.float32)
        self.head = nn.Linear(features, classes, dtype=torch.float32)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs
        self.train()

    def he(self) -> SmallConvNet:
        """Redraw all weights as He et al. 2015, biases 0, which keeps the scale of activations without training; returns itself."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return self

    def features(self, x: Tensor) -> Tensor:
        """The penultimate ReLU layer: (n, C, H, W) -> (n, features)."""
        maps = self.body(x.contiguous(memory_format=torch.channels_last))
        return F.relu(self.penultimate(maps.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits
