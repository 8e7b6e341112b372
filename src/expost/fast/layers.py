"""Linear, Conv2d and ConvTranspose2d that are torch's in everything but speed.

Same constructor, parameters, names, initial values and results (to rounding) as torch's classes; only two things differ.

* Weights lie in memory channels-last (same numbers, same shape). Every result then is channels-last too, on which CPU
  convolutions, batch normalisation and pooling are faster, and between layers nothing is copied. Tools that ask for contiguous
  tensors, such as ``safetensors``, need ``.contiguous()`` first.
* On a CPU, in float32 or bfloat16 (autocast included), the forward picks :mod:`expost.fast.gemm` where it pays. oneDNN's
  convolutions cost up to 25 ns per weight in every call, however few the images (measured; rearranging the weight would explain it);
  a product does not, but copies the windows. So it pays where weights are many for the rows they meet:

      weights per row >= 1500    everything is a product             rows = images x output positions
      100 to 1500                the weight's gradient only          (transposed: input positions)
      below 100                  torch's own

  Measured on one core (AMD Zen 5, torch 2.13; forward and backward, torch's time over the product's, float32 | bfloat16):

      weights per row   layer                                                  ratio
      83 886            512 -> 1024, k4 s2, on 3x3, 100 images                 7.5  | 6.6
      41 943            512 -> 1024, k4 s2, on 4x4, 50                         4.9  | 7.3
      11 796            512 -> 512, k3 s1, on 2x2, 50                          2.0  | 2.1
      10 240            1024 -> 512 transposed, k5 s2, on 8x8, 20              1.45 | 1.44
      6 553             1024 -> 512 transposed, k4 s2, on 8x8, 20              1.31 | 1.20
      2 949             1024 -> 512 transposed, k3 s2, on 4x4, 100             1.94 | 2.34
      2 560             256 -> 512, k5 s2, on 16x16, 20                        1.18 | 1.13
      2 330             256 -> 512, k4 s2, on 7x7, 100                         1.56 | 1.84
      1 310             1024 -> 512 transposed, k4 s2, on 8x8, 100             1.09 | 1.07
      737               256 -> 256, k3 s1, on 4x4, 50                          0.94 | 0.91
      409               512 -> 256 transposed, k4 s2, on 16x16, 20             0.92 | 0.93
      240               512 -> 256 transposed, k3 s2, on 7x7, 100              0.86 | 1.04
      106               128 -> 256, k4 s2, on 14x14, 100                       0.78 | 0.92

  That is with everything a product, which the last four rows do not repay. The weight's gradient alone does: in a bfloat16 training
  step the backward pass of the last row but one took 95 ms with torch's own, 27 + 31 ms and a copy with the product for the weight.
  All in CPU seconds on a shared machine; two threads were not measured undisturbed.

GPUs, other dtypes, groups, dilation, padding modes, ``torch.compile``, ``torch.func`` and forward-mode differentiation take torch's path.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from expost.fast.gemm import ConvAsProduct, ConvTransposeAsProduct, LinearAsProduct

__all__ = ["Conv2d", "ConvTranspose2d", "Linear"]

WEIGHTS_PER_ROW = 1500
"""From this many weights per row on, products are faster than oneDNN's convolution throughout (table above)."""

GRADIENT_ONLY = 100
"""From here to there, only the weight's gradient is a product."""

SMALLEST = 1 << 18
"""Layers with fewer weights are over in microseconds either way."""


def _dtype(x: Tensor, stored: torch.dtype) -> torch.dtype | None:
    """The dtype to multiply in, or None where torch's own path is to be taken. Does not touch the weight: it may be computed on access."""
    if type(x) is not Tensor or x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    return dtype if torch.is_autocast_enabled("cpu") or x.dtype == stored else None


def _plain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _weights_per_row(layer: nn.Conv2d | nn.ConvTranspose2d, rows: int) -> float:
    weights = layer.in_channels * layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
    return weights / rows if rows > 0 and weights >= SMALLEST else 0.0


def _explicit(x: Tensor) -> Tensor:
    """One channel is channels-last as much as it is contiguous, and torch then answers contiguous: say by the strides what is meant."""
    return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2) if x.dim() == 4 and x.shape[1] == 1 and x.device.type == "cpu" else x


def _pair(x: tuple[int, ...] | str) -> tuple[int, int]:
    assert not isinstance(x, str)
    return x[0], x[1]


def _stored(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


class _Taps(torch.autograd.Function):
    """weight[:, :, rows, columns]; the gradient of the taps left out is zero, written once, channels-last like the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: slice, columns: slice) -> Tensor:
        ctx.shape, ctx.spans = weight.shape, (rows, columns)
        return weight[:, :, rows, columns]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        out, channels, height, width = ctx.shape
        whole = grad.new_zeros(out, height, width, channels).permute(0, 3, 1, 2)
        whole[:, :, ctx.spans[0], ctx.spans[1]] = grad
        return whole, None, None


class Linear(nn.Linear):
    """``nn.Linear``; float32 products on the CPU go to oneDNN, which doubles them on AMD processors (see :func:`gemm.product`)."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // max(1, self.in_features)
        large = rows * self.in_features * self.out_features >= 1 << 23
        if large and input.dim() > 1 and _dtype(input, _stored(self)) == torch.float32:
            return LinearAsProduct.apply(input, self.weight, self.bias)
        return super().forward(input)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``, computed as a matrix product where that is faster."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        _channels_last(self)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 4 and _plain(self):
            padding = _pair(self.padding)
            size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(input.shape[2:], padding, self.kernel_size, self.stride, strict=True)]
            dtype = _dtype(input, _stored(self))
            density = _weights_per_row(self, len(input) * size[0] * size[1]) if dtype and min(size) > 0 else 0
            if density >= GRADIENT_ONLY:
                if density < WEIGHTS_PER_ROW:
                    return ConvAsProduct.apply(input, self.weight, self.bias, _pair(self.stride), padding, dtype, True)
                weight, padding = self._used(input, padding, size)
                return ConvAsProduct.apply(input, weight, self.bias, _pair(self.stride), padding, dtype, False)
        return super().forward(_explicit(input))

    def _used(self, x: Tensor, padding: tuple[int, int], size: list[int]) -> tuple[Tensor, tuple[int, int]]:
        """The kernel without the rows and columns that only ever meet padding (7 of 16 taps of k4 s2 p1 on 3x3), and the padding then."""
        spans, rest = [], []
        for n, p, k, s, o in zip(x.shape[2:], padding, self.kernel_size, self.stride, size, strict=True):
            first, last = max(0, p - s * (o - 1)), min(k, n + p)
            if (n + 2 * (p - first) - (last - first)) // s + 1 != o:
                first, last = 0, k
            spans.append(slice(first, last))
            rest.append(p - first)
        if all(span.stop - span.start == k for span, k in zip(spans, self.kernel_size, strict=True)):
            return self.weight, padding
        return _Taps.apply(self.weight, *spans), (rest[0], rest[1])


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d``, computed as a matrix product where that is faster."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        _channels_last(self)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        dtype = _dtype(input, _stored(self)) if input.dim() == 4 and output_size is None and _plain(self) else None
        density = _weights_per_row(self, len(input) * input.shape[2] * input.shape[3]) if dtype else 0
        if density >= GRADIENT_ONLY:
            args = _pair(self.stride), _pair(self.padding), _pair(self.output_padding)
            return ConvTransposeAsProduct.apply(input, self.weight, self.bias, *args, dtype, density < WEIGHTS_PER_ROW)
        return super().forward(_explicit(input), output_size)


def _channels_last(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    if not layer.weight.is_meta:
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
