"""Convolutions as matrix products, with hand-written gradients: what ``layers`` runs where it pays.

A convolution of stride s and kernel k copies every window of the image into a row (*unfold*) and multiplies once:

    y[(b, i, j), o] = sum_{u, v, c}  cols[(b, i, j), (u, v, c)] W[o, (u, v, c)],      cols[...] = x[b, s i + u - p, s j + v - p, c]

and its transpose multiplies first and adds the overlapping windows (*fold*). Each is the other's gradient with respect to the
input, and the gradient with respect to the weight is one more product, so two copies and one product are the whole theory.
Images are channels-last, (B, H, W, C), because then each copy moves runs of k C neighbouring numbers, and a weight stored in
``torch.channels_last`` *is* the matrix, without a copy.

``direct=True`` leaves the result and the input's gradient to torch's convolution and takes the product for the weight's gradient only.

What is kept: weights and their gradients stay in the weight's own precision (float32 under bfloat16 autocast), sums over the batch
that cross chunks are float32, results are the same for the same input and number of threads. What is not promised: bitwise
equality with torch, whose order of summation differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ConvAsProduct", "ConvTransposeAsProduct", "LinearAsProduct", "fold", "product", "unfold"]

Pair = tuple[int, int]

CHUNK = 1 << 24
"""At most so many bytes in one unfolded matrix; larger batches are cut. It then stays near the cache and comes from memory already held."""


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a bᵀ (+ bias): (m, k), (n, k), (n,) -> (m, n).

    In float32 oneDNN is called directly: torch's own route is MKL, which reaches half the speed on AMD processors
    (100 against 210 GFLOP/s per core on a Zen 5) and the same on Intel's. oneDNN keeps full float32 precision here.
    """
    if a.dtype == torch.float32 and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def unfold(x: Tensor, kernel: Pair, stride: Pair, before: Pair, size: Pair) -> Tensor:
    """Windows as rows: x (B, H, W, C) -> (B size₀ size₁, kernel₀ kernel₁ C), with ``before`` rows and columns of zeros in front."""
    (kh, kw), (sh, sw), (ph, pw), (oh, ow) = kernel, stride, before, size
    b, h, w, c = x.shape
    after_h, after_w = max(0, (oh - 1) * sh + kh - ph - h), max(0, (ow - 1) * sw + kw - pw - w)
    x = F.pad(x, (0, 0, pw, after_w, ph, after_h)) if ph or pw or after_h or after_w else x.contiguous()
    row = x.shape[2] * c
    windows = x.as_strided((b, oh, ow, kh, kw, c), (x.shape[1] * row, sh * row, sw * c, row, c, 1))
    return windows.reshape(b * oh * ow, kh * kw * c)


def fold(cols: Tensor, grid: tuple[int, int, int], kernel: Pair, stride: Pair, before: Pair, size: Pair) -> Tensor:
    """Sum of overlapping windows, the transpose of :func:`unfold`: rows -> a view (B, size₀, size₁, C).

    ``grid`` = (B, rows, columns) of windows. Columns of a window are added s at a time, as runs of s C neighbouring numbers.
    """
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, before
    b, gh, gw = grid
    cols = cols.view(b, gh, gw, kh, -1)
    c = cols.shape[-1] // kw
    blocks_h = max(gh + (kh - 1) // sh, -(-(ph + size[0]) // sh))
    blocks_w = max(gw + (kw - 1) // sw, -(-(pw + size[1]) // sw))
    out = cols.new_zeros(b, blocks_h, sh, blocks_w, sw * c)
    for u in range(kh):
        for v in range(0, kw, sw):
            run = min(sw, kw - v) * c
            out[:, u // sh : u // sh + gh, u % sh, v // sw : v // sw + gw, :run] += cols[:, :, :, u, v * c : v * c + run]
    return out.view(b, blocks_h * sh, blocks_w * sw, c)[:, ph : ph + size[0], pw : pw + size[1]]


def _last(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(B, C, H, W) -> contiguous (B, H, W, C); no copy if x is channels-last already."""
    return x.permute(0, 2, 3, 1).to(dtype or x.dtype).contiguous()


def _first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), channels-last in memory."""
    return x.permute(0, 3, 1, 2)


def _chunks(images: int, numbers_per_image: int, dtype: torch.dtype) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, numbers_per_image * dtype.itemsize))
    for start in range(0, images, step):
        yield slice(start, start + step)


Tap = tuple[tuple[int, int], tuple[slice, slice], tuple[slice, slice]]


def _worthwhile_taps(size: Pair, out: Pair, kernel: Pair, stride: Pair, padding: Pair) -> list[Tap]:
    """A transposed convolution tap by tap: (tap, input rows and columns that it uses, output places that it reaches).

    One product for all taps also computes what falls outside the image: 44 of 144 for k3 s2 p1 on 4x4. Tap by tap that is left out, at the
    cost of more and smaller products; the list is empty where less than a fifth would be saved. Not for float32, whose route through
    oneDNN is very slow on the strided slices of the kernel.
    """
    spans = [[_span(n, o, u, s, p) for u in range(k)] for n, o, k, s, p in zip(size, out, kernel, stride, padding, strict=True)]
    used = [sum(rows.stop - rows.start for rows, _ in dimension) for dimension in spans]
    if used[0] * used[1] > 0.8 * size[0] * size[1] * kernel[0] * kernel[1]:
        return []
    taps = []
    for u, (rows, down) in enumerate(spans[0]):
        for v, (columns, across) in enumerate(spans[1]):
            if rows.stop > rows.start and columns.stop > columns.start:
                taps.append(((u, v), (rows, columns), (down, across)))
    return taps


def _span(n: int, out: int, tap: int, stride: int, padding: int) -> tuple[slice, slice]:
    """Inputs i with 0 <= stride i + tap - padding < out, and these places."""
    first = max(0, -((tap - padding) // stride))
    last = max(first, min(n, (out - 1 + padding - tap) // stride + 1))
    start = stride * first + tap - padding
    return slice(first, last), slice(start, start + stride * (last - first - 1) + 1 if last > first else start, stride)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _AsProduct(torch.autograd.Function):
    """What both share: the arguments kept, and gradients of gradients, which are left to torch's own formula."""

    transposed: bool

    @classmethod
    def _keep(
        cls, ctx: Any, x: Tensor, weight: Tensor, matrix: Tensor, bias: Tensor | None, args: tuple[Pair, Pair, Pair], direct: bool
    ) -> None:
        ctx.save_for_backward(x, weight, matrix)
        ctx.args, ctx.direct, ctx.bias_dtype = args, direct, None if bias is None else bias.dtype

    @classmethod
    def _direct(cls, xs: Tensor, kernel: Tensor, offset: Tensor | None, args: tuple[Pair, Pair, Pair]) -> Tensor:
        stride, padding, output_padding = args
        return torch.convolution(_first(xs), _first(kernel), offset, stride, padding, (1, 1), cls.transposed, output_padding, 1)

    @classmethod
    def _direct_dx(cls, g: Tensor, xs: Tensor, kernel: Tensor, args: tuple[Pair, Pair, Pair]) -> Tensor:
        stride, padding, output_padding = args
        mask = [True, False, False]
        return torch.ops.aten.convolution_backward(
            _first(g), _first(xs), _first(kernel), None, stride, padding, (1, 1), cls.transposed, output_padding, 1, mask
        )[0]

    @classmethod
    def _differentiable(cls, ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
        stride, padding, output_padding = ctx.args
        channels = weight.shape[1] if cls.transposed else weight.shape[0]
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
        dx, dw, db = torch.ops.aten.convolution_backward(
            grad, x.to(grad.dtype), weight.to(grad.dtype), [channels], stride, padding, (1, 1), cls.transposed, output_padding, 1, mask
        )
        return (
            dx.to(x.dtype) if mask[0] else None,
            dw.to(weight.dtype) if mask[1] else None,
            db.to(ctx.bias_dtype) if mask[2] else None,
        )


class ConvAsProduct(_AsProduct):
    """``apply(x, weight, bias, stride, padding, dtype, direct=False)``: ``F.conv2d`` computed in ``dtype``, gradients in the arguments' own."""

    transposed = False

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dtype: torch.dtype, direct: bool = False
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            out, _, kh, kw = weight.shape
            kernel, xs = _last(weight, dtype), _last(x, dtype)
            matrix = kernel.view(out, -1)
            args = stride, padding, (0, 0)
            ConvAsProduct._keep(ctx, x, weight, matrix, bias, args, direct)
            oh = (x.shape[2] + 2 * padding[0] - kh) // stride[0] + 1
            ow = (x.shape[3] + 2 * padding[1] - kw) // stride[1] + 1
            offset = None if bias is None else bias.to(dtype)
            if direct:
                return ConvAsProduct._direct(xs, kernel, offset, args)
            parts = [
                product(unfold(xs[i], (kh, kw), stride, padding, (oh, ow)), matrix, offset)
                for i in _chunks(len(x), oh * ow * matrix.shape[1], matrix.dtype)
            ]
            return _first(_join(parts).view(len(x), oh, ow, out))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, matrix = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*ConvAsProduct._differentiable(ctx, grad, x, weight), None, None, None, None)
        with torch.autocast("cpu", enabled=False):
            stride, padding, _ = ctx.args
            out, channels, kh, kw = weight.shape
            b, _, h, w = x.shape
            oh, ow = grad.shape[2:]
            g, xs = _last(grad, matrix.dtype), _last(x, matrix.dtype)
            dx_parts: list[Tensor] = []
            dw: Tensor | None = None
            for i in _chunks(b, oh * ow * matrix.shape[1], matrix.dtype):
                rows = g[i].reshape(-1, out)
                if ctx.needs_input_grad[0] and not ctx.direct:
                    cols = product(rows, matrix.t())
                    dx_parts.append(fold(cols, (len(g[i]), oh, ow), (kh, kw), stride, padding, (h, w)))
                if ctx.needs_input_grad[1]:
                    part = product(rows.t(), unfold(xs[i], (kh, kw), stride, padding, (oh, ow)).t()).to(weight.dtype)
                    dw = part if dw is None else dw.add_(part)
            dx = _first(_join(dx_parts)).to(x.dtype) if dx_parts else None
            if ctx.needs_input_grad[0] and ctx.direct:
                dx = ConvAsProduct._direct_dx(g, xs, matrix.view(out, kh, kw, channels), ctx.args).to(x.dtype)
            db = g.sum((0, 1, 2), dtype=ctx.bias_dtype) if ctx.needs_input_grad[2] else None
            return dx, None if dw is None else _first(dw.view(out, kh, kw, channels)), db, None, None, None, None


class ConvTransposeAsProduct(_AsProduct):
    """``apply(x, weight, bias, stride, padding, output_padding, dtype, direct=False)``, likewise."""

    transposed = True

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        output_padding: Pair,
        dtype: torch.dtype,
        direct: bool = False,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            channels, _, kh, kw = weight.shape
            kernel, xs = _last(weight, dtype), _last(x, dtype)
            matrix = kernel.view(channels, -1)
            args = stride, padding, output_padding
            ConvTransposeAsProduct._keep(ctx, x, weight, matrix, bias, args, direct)
            b, h, w, _ = xs.shape
            oh = (h - 1) * stride[0] - 2 * padding[0] + kh + output_padding[0]
            ow = (w - 1) * stride[1] - 2 * padding[1] + kw + output_padding[1]
            offset = None if bias is None else bias.to(dtype)
            if direct:
                return ConvTransposeAsProduct._direct(xs, kernel, offset, args)
            taps = [] if dtype == torch.float32 else _worthwhile_taps((h, w), (oh, ow), (kh, kw), stride, padding)
            if taps:
                y = xs.new_zeros(b, oh, ow, kernel.shape[3])
                for (u, v), rows, places in taps:
                    seen = xs[:, rows[0], rows[1]]
                    y[:, places[0], places[1]] += product(seen.reshape(-1, channels), kernel[:, u, v].t()).view(*seen.shape[:3], -1)
                return _first(y if offset is None else y + offset)
            parts = []
            for i in _chunks(b, h * w * matrix.shape[1], matrix.dtype):
                cols = product(xs[i].reshape(-1, channels), matrix.t())
                y = fold(cols, (len(xs[i]), h, w), (kh, kw), stride, padding, (oh, ow))
                parts.append(y.contiguous() if offset is None else y + offset)
            return _first(_join(parts))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, matrix = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*ConvTransposeAsProduct._differentiable(ctx, grad, x, weight), None, None, None, None, None)
        with torch.autocast("cpu", enabled=False):
            stride, padding, _ = ctx.args
            channels, out, kh, kw = weight.shape
            b, _, h, w = x.shape
            g, xs = _last(grad, matrix.dtype), _last(x, matrix.dtype)
            dx_parts: list[Tensor] = []
            dw: Tensor | None = None
            whole = ctx.direct or matrix.dtype == torch.float32
            taps = [] if whole else _worthwhile_taps((h, w), (g.shape[1], g.shape[2]), (kh, kw), stride, padding)
            if taps:
                kernel = matrix.view(channels, kh, kw, out)
                dx = xs.new_zeros(xs.shape, dtype=torch.promote_types(matrix.dtype, torch.float32)) if ctx.needs_input_grad[0] else None
                dw = weight.new_zeros(channels, kh, kw, out) if ctx.needs_input_grad[1] else None
                for (u, v), rows, places in taps:
                    got = g[:, places[0], places[1]].reshape(-1, out)
                    seen = xs[:, rows[0], rows[1]]
                    if dx is not None:
                        dx[:, rows[0], rows[1]] += product(got, kernel[:, u, v]).view(seen.shape)
                    if dw is not None:
                        dw[:, u, v] = product(seen.reshape(-1, channels).t(), got.t())
                db = g.sum((0, 1, 2), dtype=ctx.bias_dtype) if ctx.needs_input_grad[2] else None
                return None if dx is None else _first(dx).to(x.dtype), None if dw is None else _first(dw), db, None, None, None, None, None
            for i in _chunks(b, h * w * matrix.shape[1], matrix.dtype):
                cols = unfold(g[i], (kh, kw), stride, padding, (h, w))
                if ctx.needs_input_grad[0] and not ctx.direct:
                    dx_parts.append(product(cols, matrix))
                if ctx.needs_input_grad[1]:
                    part = product(xs[i].reshape(-1, channels).t(), cols.t()).to(weight.dtype)
                    dw = part if dw is None else dw.add_(part)
            dx = _first(_join(dx_parts).view(b, h, w, channels)).to(x.dtype) if dx_parts else None
            if ctx.needs_input_grad[0] and ctx.direct:
                dx = ConvTransposeAsProduct._direct_dx(g, xs, matrix.view(channels, kh, kw, out), ctx.args).to(x.dtype)
            db = g.sum((0, 1, 2), dtype=ctx.bias_dtype) if ctx.needs_input_grad[2] else None
            return dx, None if dw is None else _first(dw.view(channels, kh, kw, out)), db, None, None, None, None, None


class LinearAsProduct(torch.autograd.Function):
    """``apply(x, weight, bias)``: ``F.linear`` through :func:`product`, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        multiply = _differentiable_product if torch.is_grad_enabled() else product
        g, rows = grad.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1])
        with torch.autocast("cpu", enabled=False):
            return (
                multiply(g, weight.t()).view(x.shape) if wants_x else None,
                multiply(g.t(), rows.t()) if wants_weight else None,
                g.sum(0) if wants_bias else None,
            )


def _differentiable_product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.t()
