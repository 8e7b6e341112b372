r"""Lossless compression of images with an autoencoder: the ELBO as a number of bytes.

:func:`compress` and :func:`decompress` turn images into bytes and back, exactly, for any autoencoder whose decoder gives pixels a
probability mass. The first image has no earlier bits to get back, so the stack starts with seed words, and batches start with one image
and grow as the stack does. Three rates are reported: *net* (message minus seed, what every further image costs), *with the seed*, and
the whole file; and beside them the -ELBO of the same images, which the net rate approaches.
"""

from __future__ import annotations

import platform
import time
import zlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from expost.autoencoder import Autoencoder, evaluating
from expost.codec.container import Batch, Container, Header, SeedValue, Span, malformed, pack, unpack
from expost.codec.layers import Coder
from expost.codec.networks import Level, coding_copy, levels_of, one_thread, posterior_scales, value_shape
from expost.codec.stack import Outside, Shortage, Stack, seed_words
from expost.distributions import base_of, check_data
from expost.seeds import seeded, some
from expost.system.files import atomic
from expost.system.hashes import stable_repr, state_hash
from expost.system.progress import Bar
from expost.system.schema import check_value, printable
from expost.tensors import batches, takes_data, unit
from expost.train.second_stage import SecondStage

__all__ = ["Compressed", "compress", "decompress", "model_name", "negative_elbo", "read_compressed", "write_compressed"]

_WORD = 32


@dataclass(frozen=True)
class Compressed:
    """Images as bytes.

    Attributes:
        data: the file.
        images, dims: number of images, pixel values per image.
        net_bits, seed_bits: bits of the message without the seed; of the seed.
        seconds: of coding.
        blocks: images coded together, in order.
    """

    data: bytes
    images: int
    dims: int
    net_bits: int
    seed_bits: int
    seconds: float
    blocks: list[int]

    @property
    def net_rate(self) -> float:
        """Bits per pixel value, without the seed."""
        return self.net_bits / (self.images * self.dims)

    @property
    def seeded_rate(self) -> float:
        """Bits per pixel value, with the seed."""
        return (self.net_bits + self.seed_bits) / (self.images * self.dims)

    @property
    def file_rate(self) -> float:
        """Bits per pixel value of the whole file."""
        return 8 * len(self.data) / (self.images * self.dims)


def model_name(model: Autoencoder) -> str:
    """24 hexadecimal digits naming structure and weights: a file can only be read with the model that wrote it."""
    parts = [state_hash(model.state_dict(), {"structure": stable_repr(model), "half": half}) for half in (0, 1)]
    return "".join(parts)


@takes_data("x")
def compress(
    model: Autoencoder,
    x: Tensor,
    *,
    batch_size: int = 64,
    steps: list[float] | None = None,
    span: int | None = None,
    seed: int = 0,
    origin: dict[str, str] | None = None,
    progress: bool | None = None,
) -> Compressed:
    """Code images (n, *event), uint8 or floats on the levels of the decoder's distribution, without loss.

    Args:
        batch_size: most images coded together: networks are faster on more, and the seed must cover the latents of the first few.
        steps: bin widths of every level's latents, powers of two; default: chosen from the posteriors' scales.
        span: latents lie in -span ... span bins; default: 2^13, and more if that is too small.
        seed: of the seed words.
        origin: where the model came from; written into the file as a hint for whoever decodes it.

    Raises:
        ValueError: no probability masses, deterministic encoder, prior that cannot be made discrete, values that are not levels.
    """
    start = time.perf_counter()
    if len(x) == 0:
        raise ValueError("there is nothing to compress: give at least one image")
    span = check_value(span, Span | None, "span")
    batch_size, seed = check_value(batch_size, Batch, "batch_size"), check_value(seed, SeedValue, "seed")
    with one_thread():
        coding = coding_copy(model)
        levels, prior = levels_of(coding, tuple(x.shape[1:]))
        x = x.cpu()
        symbols = _symbols(levels[0], x)
        if steps is None:
            steps = _automatic_steps(levels, _integers(some(x, 128, "steps"), symbols), symbols)
        if len(steps) != len(levels) or any(not 2.0**-64 <= s <= 2.0**64 for s in steps):
            raise ValueError(f"give one positive step for each of the {len(levels)} levels, not {steps}")
        steps, reach = [float(step) for step in steps], span or 1 << 13
        words = 16 + sum(int(torch.Size(level.latent_shape).numel()) for level in levels)
        while True:
            coder = Coder(levels, prior, steps, batch_size, reach, symbols)
            try:
                stack, blocks = _push_all(coder, x, seed_words(words, seed), progress)
                break
            except Shortage:
                words *= 2
            except Outside:
                if span is not None or reach >= 1 << 21:
                    raise
                reach *= 4
    message = stack.words()
    header = Header(
        model_name(model), "uint8" if x.dtype == torch.uint8 else "float32", list(x.shape[1:]), len(x), symbols, batch_size, steps, reach,
        {"value": seed, "words": words}, len(blocks), len(message), _text(origin or {}), _machine(),
    )  # fmt: skip
    data = pack(Container(header, blocks, message))
    seed_bits = _WORD * words
    dims = int(x[0].numel())
    return Compressed(data, len(x), dims, _WORD * len(message) - seed_bits, seed_bits, time.perf_counter() - start, [n for n, _ in blocks])


def decompress(model: Autoencoder, data: bytes, *, name: str = "this file", progress: bool | None = None) -> Tensor:
    """The images that :func:`compress` was given, bit for bit.

    Raises:
        ValueError: another model, damaged data, or a machine whose arithmetic differs: never other pixels.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(
            f"give the bytes of a compressed file, not {type(data).__name__}: compress(...).data, or read_compressed(path, model)"
        )
    container = unpack(bytes(data), name)
    header = container.header
    if header.model != model_name(model):
        raise ValueError(f"{name} was written with another model ({header.model}, this is {model_name(model)}): give the run that wrote it")
    with one_thread():
        coding = coding_copy(model)
        made = value_shape(coding)
        if tuple(header.shape) != made:
            raise malformed(name, f"images of shape {tuple(header.shape)[:8]}, and the model makes {made}")
        levels, prior = levels_of(coding, made)
        for what, said, true in (("pixel values", header.symbols, _alphabet(levels[0])), ("steps", len(header.steps), len(levels))):
            if said != true:
                raise malformed(name, f"{said} {what}, and the model has {true}")
        coder = Coder(levels, prior, header.steps, header.batch, header.span, header.symbols)
        parts: list[Tensor] = []
        where = "the end of the message"
        try:
            stack = Stack(container.message, sealed=False)
            with Bar(header.images, enabled=progress, what="decompressing") as bar:
                done = 0
                for number, (n, checksum) in reversed(list(enumerate(container.blocks, 1))):
                    where = f"block {number} of {header.blocks}"
                    values = coder.pop(stack, n)
                    if _checksum(values) != checksum:
                        raise _Differs
                    parts.append(_stored(values, header.symbols, header.dtype))
                    bar.update(done := done + n)
            where = "the seed"
            if not np.array_equal(stack.unsealed(), seed_words(header.seed["words"], header.seed["value"])):
                raise _Differs
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # numbers that no model gives may end in anything, the coder's panics are no Exception
            raise ValueError(_undecodable(name, where, error, header)) from error
    return torch.cat(parts[::-1])


@takes_data("x")
def write_compressed(
    path: str | Path,
    compressed: Compressed,
    model: Autoencoder,
    x: Tensor,
    *,
    verify: bool = True,
    replace: bool = True,
    progress: bool | None = None,
) -> None:
    """Write the file whole or not at all; with ``verify`` it is read back and decoded first, and must give the very images.

    Args:
        replace: an existing file; without it ``FileExistsError``.
    """
    with atomic(path, replace=replace) as temporary:
        temporary.write_bytes(compressed.data)
        if verify:
            back = decompress(model, temporary.read_bytes(), name=str(path), progress=progress)
            if back.dtype != x.dtype or not torch.equal(back, x.cpu()):
                raise ValueError(
                    f"{path} was not written: decoding did not give the same images back; this is a fault of expost, report it"
                )


def read_compressed(path: str | Path, model: Autoencoder, *, progress: bool | None = None) -> Tensor:
    """The images of a file, see :func:`decompress`."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: check the path")
    return decompress(model, path.read_bytes(), name=str(path), progress=progress)


@takes_data("x")
def negative_elbo(model: Autoencoder, x: Tensor, *, batch_size: int = 500, seed: int = 0) -> Tensor:
    """-ELBO of each image in bits with one sample at every level, (n,) float64: the length that bits-back coding has in expectation."""
    parts: list[Tensor] = []
    with evaluating(model), seeded("negative_elbo", seed), Bar(len(x), what="-ELBO") as bar:
        for batch in batches(x, batch_size):
            nats, value, density = torch.zeros(len(batch), dtype=torch.float64), unit(batch.to(model.device)), model
            while isinstance(density, Autoencoder | SecondStage):
                inner = density.model if isinstance(density, SecondStage) else density
                q = inner.encode(value)
                z = q.sample()
                p = inner.decode(z)
                if density is model:
                    check_data(p, value)
                nats += (q.log_prob(z) - p.log_prob(value)).double().cpu()
                value, density = z, inner.prior  # type: ignore[assignment]
            assert density is not None
            parts.append(nats - density().log_prob(value).double().cpu())
            bar.update(sum(map(len, parts)))
    return torch.cat(parts) / float(np.log(2))


# -- parts ------------------------------------------------------------------------------------------------------------------------------


def _push_all(coder: Coder, x: Tensor, words: Any, progress: bool | None) -> tuple[Stack, list[tuple[int, int]]]:
    stack, blocks, done, n = Stack(words, sealed=True), [], 0, 1
    with Bar(len(x), enabled=progress, what="compressing") as bar:
        while done < len(x):
            block = _integers(x[done : done + n], coder.symbols)
            coder.push(stack, block)
            blocks.append((len(block), _checksum(block)))
            done += len(block)
            bar.update(done)
            each = max(1.0, 1.3 * coder.popped / len(block))  # bits that the next images take before they give any
            n = max(1, min(coder.batch, 2 * n, int(0.9 * stack.bits / each)))
    return stack, blocks


def _symbols(level: Level, x: Tensor) -> int:
    """The number of values that a pixel may have; ``ValueError`` if some pixels are not levels of the decoder's distribution."""
    kind = str(x.dtype).removeprefix("torch.")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise ValueError(f"images must be uint8 or float32, not {kind}: convert them first")
    base, symbols = base_of(_pixels(level)), _alphabet(level)
    if symbols == 2 and x.dtype == torch.uint8 and int(x.max()) == 1:
        raise ValueError("binary images as uint8 are 0 and 255, and these are 0 and 1: multiply them by 255, or give floats 0 and 1")
    for part in batches(x, 1000):
        check_data(base, unit(part))
        if not torch.equal(_stored(_integers(part, symbols), symbols, kind), part):
            raise ValueError(f"some pixels are not exactly one of the {symbols} levels k / {symbols - 1}: give uint8 images")
    if kind not in ("uint8", "float32"):
        raise ValueError(f"images must be uint8 or float32, not {kind}: convert them first")
    return symbols


def _pixels(level: Level) -> Distribution:
    """p(x | z = 0)."""
    return level.decoder(torch.zeros(1, *level.latent_shape, dtype=torch.float64))


def _alphabet(level: Level) -> int:
    """The number of values that the decoder's distribution gives a mass."""
    base: Any = base_of(_pixels(level))
    return 2 if isinstance(base, Bernoulli) else int(base.levels)


def _integers(x: Tensor, symbols: int) -> Tensor:
    """Pixels as integers 0 ... symbols - 1."""
    return (unit(x) * (symbols - 1)).round().to(torch.int64)


def _stored(values: Tensor, symbols: int, dtype: str) -> Tensor:
    if dtype == "uint8":
        return (values * (255 // (symbols - 1))).to(torch.uint8)
    return values.to(getattr(torch, dtype)) / (symbols - 1)


def _automatic_steps(levels: list[Level], values: Tensor, symbols: int) -> list[float]:
    """A quarter of the posteriors' scale, but for the smallest 1 %, as a power of two between 2^-12 and 2^-3."""
    steps, value = [], values.double() / (symbols - 1)
    with seeded("steps"):
        for level in levels:
            q = level.encoder(value)
            scale = float(posterior_scales(q).flatten().kthvalue(max(1, posterior_scales(q).numel() // 100)).values)
            steps.append(2.0 ** int(np.clip(np.floor(np.log2(max(1e-300, scale) / 4)), -12, -3)))
            value = q.sample()
    return steps


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.to(torch.int32).numpy().tobytes())


def _text(origin: dict[str, str]) -> dict[str, str]:
    """Names of files may hold bytes that are not UTF-8, a header may not."""
    return {key: value.encode(errors="replace").decode() for key, value in origin.items()}


def _machine() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("torch", "constriction")}
    return {**versions, "processor": platform.machine(), "vectors": torch.backends.cpu.get_cpu_capability()}


class _Differs(Exception):
    """What was decoded is not what was coded."""


def _undecodable(name: str, where: str, error: BaseException, header: Header) -> str:
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return f"{name} cannot be decoded here ({where} does not fit into memory): decode it where more memory is free"
    written = printable(", ".join(f"{k} {v}" for k, v in header.machine.items()))
    return (
        f"{name} cannot be decoded here ({where} does not come out right): either networks compute other numbers here than where it was written "
        f"({written}), or the file was changed; decode it with the same versions on the same kind of machine, or restore it from a copy"
    )
