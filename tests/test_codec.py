"""Bits-back coding: exact round trips for every kind of model, rates near the -ELBO, and errors instead of wrong pixels."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expost import heads
from expost.autoencoder import Autoencoder
from expost.codec import compress, decompress, general_purpose, layers, negative_elbo, networks, read_compressed, write_compressed
from expost.codec import container as container_module
from expost.codec.container import MAGIC, Container, Header, pack, unpack
from expost.codec.networks import one_thread
from expost.codec.stack import Outside, Shortage, Stack, seed_words
from expost.conditional import Conditional
from expost.density import GMM, KDE, FullGaussian, StandardNormal, VampPrior
from expost.papers.yu2020.squeezed import squeezed_decoder, squeezed_encoder
from expost.system.schema import parse
from expost.train.second_stage import SecondStage
from expost.train.settings import Training

SHAPE, D = (1, 8, 8), 6


def grey(n: int = 60) -> Tensor:
    x = (torch.rand(n, *SHAPE) ** 3 * 255).to(torch.uint8)
    x[:, :, :3] = 0
    return x


def binary(n: int = 60) -> Tensor:
    return (grey(n) > 60).to(torch.uint8) * 255


def encoder(head: heads.Head) -> Conditional:
    return Conditional(squeezed_encoder(SHAPE, head.size(D), 4), head, 1, 3)


def decoder(head: heads.Head) -> Conditional:
    return Conditional(squeezed_decoder(D, SHAPE, head.size(1), 4), head, 3, 1)


def inner(d: int = D, prior: object = None) -> Autoencoder:
    return Autoencoder(
        Conditional(nn.Linear(d, 6), heads.Diagonal()),
        Conditional(nn.Linear(3, 2 * d), heads.Gaussian("pixel")),
        prior or StandardNormal(3),  # type: ignore[arg-type]
    )


def vamp() -> Autoencoder:
    encode = encoder(heads.Diagonal())
    return Autoencoder(encode, decoder(heads.Logistic()), VampPrior(encode, 5, SHAPE, (0.0, 1.0)))


def two_stage() -> Autoencoder:
    stage = SecondStage.mlp(D, 16, Training(steps=5, batch_size=32)).fit(torch.randn(64, D))
    return Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic()), stage)


def maps() -> Autoencoder:
    outer = Conditional(squeezed_encoder(SHAPE, 4, 4, maps=True), heads.Diagonal(), 3, 3)
    pixels = heads.LogisticMixture(2)
    decode = Conditional(squeezed_decoder(2, SHAPE, pixels.size(1), 4, maps=True), pixels, 3, 3)
    flat = Conditional(nn.Sequential(nn.Flatten(), nn.Linear(8, 6)), heads.Diagonal(), 1, 3)
    unflat = Conditional(nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (4, 2, 2))), heads.Gaussian("pixel"), 3, 1)
    return Autoencoder(outer, decode, Autoencoder(flat, unflat, StandardNormal(3)))


MODELS = {
    "logistic": lambda: Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic()), StandardNormal(D)),
    "shared-scale": lambda: Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic("shared")), StandardNormal(D)),
    "mixture": lambda: Autoencoder(encoder(heads.Diagonal(heads.exp)), decoder(heads.LogisticMixture()), StandardNormal(D)),
    "beta-binomial": lambda: Autoencoder(encoder(heads.Constant(0.3)), decoder(heads.BetaBinomial()), StandardNormal(D)),
    "binned-gaussian": lambda: Autoencoder(encoder(heads.Diagonal()), decoder(heads.BinnedGaussian()), StandardNormal(D)),
    "full-covariance": lambda: Autoencoder(encoder(heads.FullCovariance()), decoder(heads.Logistic()), StandardNormal(D)),
    "bernoulli": lambda: Autoencoder(encoder(heads.Diagonal()), decoder(heads.Bernoulli()), StandardNormal(D)),
    "gaussian-prior": lambda: Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic()), FullGaussian(D).fit(torch.randn(99, D))),
    "gmm-prior": lambda: Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic()), GMM(D, 3).fit(torch.randn(99, D))),
    "gmm-diagonal": lambda: Autoencoder(
        encoder(heads.Diagonal()), decoder(heads.Logistic()), GMM(D, 2, "diagonal").fit(torch.randn(99, D))
    ),
    "vamp-prior": vamp,
    "nested": lambda: Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic()), inner()),
    "three-levels": lambda: Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic()), inner(prior=inner(3))),
    "nested-gmm": lambda: Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic()), inner(prior=GMM(3, 2).fit(torch.randn(99, 3)))),
    "second-stage": two_stage,
    "latent-maps": maps,
}


@pytest.fixture(scope="module")
def coded() -> tuple[Autoencoder, Tensor, bytes]:
    torch.manual_seed(3)
    model, x = MODELS["mixture"](), grey()
    return model, x, compress(model, x, batch_size=16).data


@pytest.mark.parametrize("name", list(MODELS))
def test_round_trip_is_exact_and_the_rate_is_the_elbo(name: str) -> None:
    model, x = MODELS[name](), binary() if name == "bernoulli" else grey()
    compressed = compress(model, x, batch_size=16)
    back = decompress(model, compressed.data)
    assert back.dtype == x.dtype
    assert torch.equal(back, x)
    assert sum(compressed.blocks) == len(x)
    elbo = torch.stack([negative_elbo(model, x, seed=s).mean() for s in range(20)])
    # one draw of every latent against twenty: five standard deviations of the mean over images, and the coder's own overhead
    spread = 5 * float(elbo.std()) / compressed.dims + 0.02
    rate = float(elbo.mean()) / compressed.dims
    assert compressed.net_rate <= rate + spread
    if name != "binned-gaussian":  # an untrained Gaussian's tails lie below 2^-24, the least that the coder gives a symbol: it does better
        assert compressed.net_rate >= rate - spread
    assert compressed.net_rate < compressed.seeded_rate < compressed.file_rate


def test_floats_on_the_grid_and_binary_floats_come_back_as_floats() -> None:
    model = MODELS["logistic"]()
    x = grey(5).float() / 255
    back = decompress(model, compress(model, x).data)
    assert back.dtype == torch.float32
    assert torch.equal(back, x)
    model, x = MODELS["bernoulli"](), (grey(5) > 60).float()
    assert torch.equal(decompress(model, compress(model, x).data), x)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_any_number_of_images_and_batch_size(n: int) -> None:
    model, x = MODELS["nested"](), grey(n)
    for batch in (1, 4, 64):
        assert torch.equal(decompress(model, compress(model, x, batch_size=batch).data), x)


def test_latents_far_from_the_origin_get_a_larger_span() -> None:
    model, x = MODELS["logistic"](), grey(3)
    with torch.no_grad():
        model.encoder.net[-1].bias[:D] += 400.0  # type: ignore[index, union-attr, operator]
    compressed = compress(model, x, steps=[2.0**-6])
    assert unpack(compressed.data).header.span > 1 << 13
    assert torch.equal(decompress(model, compressed.data), x)


def test_the_same_input_gives_the_same_file_whatever_the_threads() -> None:
    model, x = MODELS["gmm-prior"](), grey(20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = compress(model, x)
        torch.set_num_threads(2)
        two = compress(model, x)
        assert one.data == two.data
        assert torch.equal(decompress(model, one.data), x)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_global_state_and_the_model_are_left_alone() -> None:
    model, x = MODELS["nested"](), grey(4)
    model.train()
    state = torch.get_rng_state()
    dtypes = [p.dtype for p in model.parameters()]
    compress(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert [p.dtype for p in model.parameters()] == dtypes
    assert all(p.requires_grad for p in model.parameters())


# -- damage -------------------------------------------------------------------------------------------------------------------------------


def test_a_thousand_corruptions_are_a_thousand_errors(coded: tuple[Autoencoder, Tensor, bytes]) -> None:
    model, _, data = coded
    rng = np.random.default_rng(0)
    for trial in range(1000):
        damaged = bytearray(data)
        if trial % 3 == 0:
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        elif trial % 3 == 1:
            damaged = damaged[: rng.integers(len(data))]
        else:
            at = int(rng.integers(len(data) - 16))
            for i, byte in enumerate(rng.bytes(int(rng.integers(1, 16)))):
                damaged[at + i] ^= byte | 1  # every byte changes
        with pytest.raises(ValueError, match=r"damaged|truncated|not a compressed file"):
            decompress(model, bytes(damaged))


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()[:16]


def with_header(data: bytes, text: str) -> bytes:
    """The file with another header, its length and the checksum made right."""
    encoded = text.encode(errors="surrogatepass")
    return sealed(data[:10] + len(encoded).to_bytes(4, "little") + encoded + data[14 + int.from_bytes(data[10:14], "little") : -16])


def judged(model: Autoencoder, x: Tensor, data: bytes) -> str:
    """What decoding says, and fails where it says it badly: more than a line, without the file's name, or with other pixels."""
    try:
        back = decompress(model, data, name="a.xpz")
    except ValueError as error:
        said = str(error)
        assert said.startswith("a.xpz ")
        assert said.isprintable()
        assert len(said) < 600
        return said
    assert torch.equal(back, x), "other pixels"
    return "the same"


def test_damage_with_a_right_checksum_is_a_sentence_or_does_nothing(coded: tuple[Autoencoder, Tensor, bytes]) -> None:
    model, x, data = coded
    rng, container, said = np.random.default_rng(1), unpack(data), []
    for trial in range(40):
        body, at = bytearray(data[:-16]), int(rng.integers(len(data) - 16))
        if trial % 4 == 3:
            del body[at : at + int(rng.integers(1, 40))]
        else:
            body[at : at + trial % 4 + 1] = rng.bytes(trial % 4 + 1)
        said.append(judged(model, x, sealed(bytes(body))))
    for at in range(0, len(container.message), max(1, len(container.message) // 12)):
        message = container.message.copy()
        message[at] ^= np.uint32(1 << 7)
        said.append(judged(model, x, pack(dataclasses.replace(container, message=message))))
    for number in range(len(container.blocks)):
        n, checksum = container.blocks[number]
        for other in ((n, checksum ^ 1), (n + 1, checksum), (0, checksum), (64, checksum), (65, checksum)):
            blocks = [other if i == number else block for i, block in enumerate(container.blocks)]
            for images in (container.header.images, sum(m for m, _ in blocks)):
                header = dataclasses.replace(container.header, images=images, batch=64)
                said.append(judged(model, x, pack(Container(header, blocks, container.message))))
    assert sum("cannot be decoded here" in sentence for sentence in said) > 30
    assert sum("does not follow the format" in sentence for sentence in said) > 10


HOSTILE: list[Any] = [
    ..., None, True, -1, 0, 1, 0.5, 1e-320, 1e300, 65535, 65536, 3 * 10**9, 10**12, 10**40, float("nan"), float("inf"),
    "", "x", "object", "\x1b[2J", "\u202e", "\udc80", [], {}, [0], [None], [float("nan")], [1] * 50, "@deep@",
]  # fmt: skip


def hostile_headers(data: bytes, values: list[Any] = HOSTILE) -> Iterator[tuple[str, bytes]]:
    """Every field and every part of one, missing or with every hostile value; and texts that are no header at all."""
    header = json.loads(data[14 : 14 + int.from_bytes(data[10:14], "little")])
    parts = [(name,) for name in header] + [("seed", "value"), ("seed", "words"), ("origin", "run"), ("machine", "torch")]
    parts += [("shape", 0), ("shape", 2), ("steps", 0)]
    for (name, *inner), value in itertools.product(parts, values):
        changed = copy.deepcopy(header)
        changed.setdefault("origin", {})["run"] = "runs/a"
        target, key = (changed[name], inner[0]) if inner else (changed, name)
        if value is ...:
            del target[key]
        else:
            target[key] = value
        yield f"{name} {inner} {value!r}", with_header(data, json.dumps(changed).replace('"@deep@"', "[" * 3000 + "]" * 3000))
    text = json.dumps(header)
    twice = text.replace('"batch": 16', '"batch": 16, "batch": 1000000000')
    assert twice != text
    for other in (
        twice,
        "",
        "null",
        "[]",
        "5",
        "{}",
        "{",
        text[:-1],
        text + "x",
        "[" * 3000,
        "\ufeff" + text,
        "\udc80",
        '{"seed": ' + "9" * 5000 + "}",
        " " * 2**20 + text,
    ):
        yield other[:40], with_header(data, other)
    for length in (0, 1, 2**31, 2**32 - 1):
        yield f"length {length}", sealed(data[:10] + length.to_bytes(4, "little") + data[14:-16])


def test_every_hostile_header_is_a_sentence(coded: tuple[Autoencoder, Tensor, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, data = coded
    monkeypatch.setattr(container_module, "parse", lambda *a: counted(parse(*a)))
    passed: list[Header] = []

    def counted(header: Header) -> Header:
        passed.append(header)
        return header

    same = [label for label, hostile in hostile_headers(data) if judged(model, x, hostile) == "the same"]
    # what decoding does not need, and batches that hold all blocks: nothing else may be changed unseen
    assert {label.split()[0] for label in same} <= {"origin", "machine", "batch", "shape", "images", "seed"}, same
    assert len(passed) < 150, "types and ranges are found before anything is made of them"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": {"value": 0, "words": 3 * 10**9}}, "began with 3000000000"),
        ({"seed": {"value": 0}}, r"seed.*words"),
        ({"batch": 10**9}, r"batch: expected int <= 65535"),
        ({"batch": 1}, "blocks of 1 to 1 images"),
        ({"shape": [10**9, 8, 8]}, r"shape \(1000000000, 8, 8\), and the model makes \(1, 8, 8\)"),
        ({"shape": [1] * 100000}, "shape"),
        ({"steps": [0.0]}, "steps"),
        ({"steps": [float("nan")]}, "JSON is malformed"),
        ({"steps": []}, "steps: expected array of length >= 1"),
        ({"steps": [0.125, 0.125]}, "2 steps, and the model has 1"),
        ({"span": 0}, "span: expected int >= 1"),
        ({"span": 2**22}, "span: expected int <= 4194303"),
        ({"symbols": 2}, "2 pixel values, and the model has 256"),
        ({"dtype": "object"}, "dtype: invalid enum value 'object'"),
        ({"dtype": None}, "dtype: expected str, got null"),
        ({"images": 10**12}, "60 images, and 1000000000000 are announced"),
        ({"blocks": 10**12}, "do not make"),
        ({"words": 10**12}, "do not make"),
    ],
)
def test_a_header_that_contradicts_itself_says_where(
    changes: dict[str, Any], sentence: str, coded: tuple[Autoencoder, Tensor, bytes]
) -> None:
    model, x, data = coded
    container = unpack(data)
    hostile = pack(dataclasses.replace(container, header=dataclasses.replace(container.header, **changes)))
    said = judged(model, x, hostile)
    assert re.search(sentence, said), said
    assert said.endswith("restore it from a copy, or compress the images again")


def test_no_header_takes_memory_that_an_ordinary_one_does_not() -> None:
    """In a process of its own, whose peak of resident memory is its own."""
    code = """if True:
        import dataclasses, resource, sys, torch, test_codec
        from expost.codec import compress, decompress
        from expost.codec.container import Container, pack, unpack
        torch.set_num_threads(1)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        model, x = test_codec.MODELS["nested"](), test_codec.grey(40)
        data = compress(model, x, batch_size=16).data
        assert torch.equal(decompress(model, data), x)
        usual, whole = peak(), unpack(data)
        hostile = [file for _, file in test_codec.hostile_headers(data, [1, 65535, 3 * 10**9, 10**12, 1e300, "@deep@"])]
        for first in (1, 65535):
            for steps in (whole.header.steps, [2.0**60] * 2, [2.0**-60] * 2):
                blocks = [(first, 1), *whole.blocks[:-1], (65535, 1)]
                header = dataclasses.replace(whole.header, steps=steps, batch=65535, blocks=len(blocks), images=sum(n for n, _ in blocks))
                hostile.append(pack(Container(header, blocks, whole.message)))
        for file in hostile:
            try:
                decompress(model, file)
            except ValueError:
                pass
        print(peak() - usual)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100
    assert not done.stderr, "no panic, no warning"


def test_a_block_of_more_latents_than_the_message_has_bits_is_refused_before_any_is_made(
    coded: tuple[Autoencoder, Tensor, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, data = coded
    whole = unpack(data)
    blocks = [*whole.blocks[:-1], (65535, whole.blocks[-1][1])]
    header = dataclasses.replace(whole.header, batch=65535, images=sum(n for n, _ in blocks))
    monkeypatch.setattr(layers, "_MANY", 1000)  # of 2^20, which many latents a row reach
    assert torch.equal(decompress(model, data), x)
    monkeypatch.setattr(Stack, "pop_gaussian", lambda *_: pytest.fail("latents were made"))
    with pytest.raises(ValueError, match="cannot be decoded here") as caught:
        decompress(model, pack(Container(header, blocks, whole.message)))
    assert isinstance(caught.value.__cause__, Shortage)


def test_networks_see_no_more_rows_than_fit_and_files_do_not_change(
    coded: tuple[Autoencoder, Tensor, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [coded]
    for name in ("three-levels", "full-covariance", "vamp-prior"):
        model, x = MODELS[name](), grey(30)
        cases.append((model, x, compress(model, x, batch_size=16).data))
    monkeypatch.setattr(networks, "_ROWS", 4)
    monkeypatch.setattr(networks, "_BYTES", 0)
    seen: list[int] = []
    exact = networks.Snapped.forward

    def watched(self: Any, c: Tensor) -> Tensor:
        seen.append(len(c))
        return exact(self, c)

    monkeypatch.setattr(networks.Snapped, "forward", watched)
    for model, x, data in cases:
        assert torch.equal(decompress(model, data), x)
        assert set(seen) - {5} == {1, 4}, "but for the 5 pseudo-inputs of a VampPrior"
        assert compress(model, x, batch_size=16).data == data
        seen.clear()


def golden() -> tuple[Autoencoder, Tensor]:
    """A model of two levels and images, by arithmetic that every machine does alike."""
    soft = heads.Diagonal(heads.softplus)
    inner = Autoencoder(Conditional(nn.Linear(3, soft.size(2)), soft), Conditional(nn.Linear(2, 3), heads.Gaussian(0.5)), StandardNormal(2))
    encode = Conditional(nn.Sequential(nn.Flatten(), nn.Linear(16, soft.size(3))), soft, 1, 3)
    decode = Conditional(nn.Sequential(nn.Linear(3, 32), nn.Unflatten(1, (2, 4, 4))), heads.Logistic(), 3, 1)
    model = Autoencoder(encode, decode, inner)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(((torch.arange(parameter.numel()) * 37 % 101).float() - 50).reshape(parameter.shape) / 128)
    return model, (torch.arange(12 * 16).reshape(12, 1, 4, 4) * 53 % 256).to(torch.uint8)


def test_images_of_any_form_are_compressed_alike_or_refused_for_what_is_wrong_with_them() -> None:
    model, x = golden()
    made = compress(model, x, seed=0).data
    assert compress(model, x.numpy()[::-1].copy()[::-1], seed=0).data == made  # type: ignore[arg-type]
    for other, says in (
        (torch.rand(x.shape, dtype=torch.float64), "k / 255"),
        (torch.rand(x.shape).half(), "k / 255"),
        (x.double() / 255, "must be uint8 or float32, not float64: convert them first"),
        (x.int(), "must be uint8 or float32, not int32"),
    ):
        with pytest.raises(ValueError, match=says):
            compress(model, other)


def test_a_file_of_the_first_version_is_read_and_written_alike() -> None:
    """Made by `compress(*golden(), batch_size=4, seed=-5, origin=...)` before headers were checked."""
    data = (Path(__file__).parent / "golden" / "version1.xpz").read_bytes()
    model, x = golden()
    container = unpack(data)
    made = compress(model, x, batch_size=4, seed=-5, origin=container.header.origin)
    if container.header.machine == unpack(made.data).header.machine:
        assert made.data == data
        assert torch.equal(decompress(model, data), x)
    else:  # elsewhere decoding is not promised, and wrong pixels are excluded
        judged(model, x, data)


@pytest.mark.parametrize("name", ["nested", "latent-maps", "full-covariance", "bernoulli"])
def test_a_machine_that_computes_other_numbers_gets_the_sentence_or_the_images(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, x = MODELS[name](), binary(20) if name == "bernoulli" else grey(20)
    data, exact, said = compress(model, x).data, networks.Snapped.forward, set()
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)

        def other_machine(self: Any, c: Tensor, generator: torch.Generator = generator) -> Tensor:  # a grid step off here and there
            y = exact(self, c)
            return y + (torch.rand(y.shape, generator=generator) < 0.02) / networks.GRID

        monkeypatch.setattr(networks.Snapped, "forward", other_machine)
        said.add(judged(model, x, data))
    assert any("cannot be decoded here" in sentence and "does not come out right" in sentence for sentence in said)
    assert not capfd.readouterr().err


class Panic(BaseException):
    """As pyo3's PanicException: no ``Exception``."""


@pytest.mark.parametrize(
    "error",
    [KeyError("zero probability"), Panic(), Shortage(), IndexError(), RuntimeError("mat1 and mat2"), AssertionError(), OverflowError()],
)
def test_whatever_decoding_raises_is_the_one_sentence(
    error: BaseException, coded: tuple[Autoencoder, Tensor, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, data = coded
    whole = unpack(data)
    machine = {"torch": "\x1b[2J\x1b]0;owned\x07", "a\nb": "\u202e" + "x" * 10**5}
    forged = pack(dataclasses.replace(whole, header=dataclasses.replace(whole.header, machine=machine)))

    def failing(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Stack, "pop_table", failing)
    assert "cannot be decoded here (block 7 of 7 does not come out right)" in judged(model, x, forged)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_too_little_memory_is_not_another_machine(
    error: BaseException, coded: tuple[Autoencoder, Tensor, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Stack, "pop_table", failing)
    assert "does not fit into memory" in judged(*coded)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_whoever_interrupts_decoding_is_heard(
    error: type[BaseException], coded: tuple[Autoencoder, Tensor, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Stack, "pop_table", interrupted)
    with pytest.raises(error):
        decompress(coded[0], coded[2])


def test_another_model_is_refused(coded: tuple[Autoencoder, Tensor, bytes]) -> None:
    model, _, data = coded
    other = MODELS["mixture"]()
    with pytest.raises(ValueError, match="written with another model"):
        decompress(other, data)
    with torch.no_grad():
        changed = Autoencoder(model.encoder, model.decoder, model.prior)
        bias = next(changed.decoder.parameters())
        bias[(0,) * bias.dim()] += 1e-7
        with pytest.raises(ValueError, match="written with another model"):
            decompress(changed, data)
        bias[(0,) * bias.dim()] -= 1e-7


def test_a_model_whose_arithmetic_differs_is_an_error_not_wrong_pixels(coded: tuple[Autoencoder, Tensor, bytes]) -> None:
    model, x, data = coded
    container = unpack(data)
    other = MODELS["mixture"]()
    forged = dataclasses.replace(container.header, model=decoded_name(other))
    with pytest.raises(ValueError, match="cannot be decoded here"):
        decompress(other, pack(dataclasses.replace(container, header=forged)))
    assert torch.equal(decompress(model, data), x)


def decoded_name(model: Autoencoder) -> str:
    from expost.codec.compress import model_name

    return model_name(model)


def test_foreign_files_and_versions() -> None:
    for data in (b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100)):
        with pytest.raises(ValueError, match="not a compressed file"):
            unpack(data)
    with pytest.raises(ValueError, match="truncated"):
        unpack(MAGIC)


def test_a_newer_version_says_so(coded: tuple[Autoencoder, Tensor, bytes]) -> None:
    data = bytearray(coded[2][:-16])
    data[len(MAGIC)] = 9
    with pytest.raises(ValueError, match="version 9"):
        unpack(sealed(bytes(data)))


def test_pack_and_unpack_are_inverse(coded: tuple[Autoencoder, Tensor, bytes]) -> None:
    assert pack(unpack(coded[2])) == coded[2]


# -- what cannot be coded -----------------------------------------------------------------------------------------------------------------


def test_models_that_cannot_be_coded_are_refused_with_the_remedy() -> None:
    x = grey(2)
    cases = {
        "no probability mass": Autoencoder(encoder(heads.Diagonal()), decoder(heads.Gaussian()), StandardNormal(D)),
        "deterministic encoder": Autoencoder(encoder(heads.Dirac()), decoder(heads.Logistic()), StandardNormal(D)),
        "has no prior": Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic())),
        "KDE cannot be made discrete": Autoencoder(encoder(heads.Diagonal()), decoder(heads.Logistic()), KDE(D).fit(torch.randn(50, D))),
    }
    for sentence, model in cases.items():
        with pytest.raises(ValueError, match=sentence):
            compress(model, x)
    model = MODELS["logistic"]()
    with pytest.raises(ValueError, match="nothing to compress"):
        compress(model, x[:0])
    with pytest.raises(ValueError, match="uint8"):
        compress(model, torch.rand(2, *SHAPE))
    with pytest.raises(ValueError, match="images of the model's shape"):
        compress(model, torch.zeros(2, 1, 12, 12, dtype=torch.uint8))
    with pytest.raises(ValueError, match="exactly 0 or 1"):
        compress(MODELS["bernoulli"](), x)
    with pytest.raises(ValueError, match="0 and 255"):
        compress(MODELS["bernoulli"](), binary(2) // 255)
    with pytest.raises(TypeError, match="are a str: pass one tensor"):
        compress(model, "images")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bytes"):
        decompress(model, compress(model, x))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="larger span"):
        compress(model, x, span=3)
    numbers = compress(model, x, batch_size=np.int64(2), seed=np.int32(1), steps=[np.float32(0.125)])  # type: ignore[arg-type, list-item]
    assert torch.equal(decompress(model, numbers.data), x)
    for steps in ([0.1, 0.1], [0.0], [-1.0], [float("nan")], [float("inf")], [1e-300]):
        with pytest.raises(ValueError, match="one positive step"):
            compress(model, x, steps=steps)
    for name, value in (
        ("span", 0),
        ("span", 2**22),
        ("batch_size", 0),
        ("batch_size", 65536),
        ("batch_size", 1.5),
        ("seed", 2**70),
        ("seed", 0.5),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            compress(model, x, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "parameter", "value", "sentence"),
    [
        (heads.Diagonal(), "decoder", float("nan"), "not finite numbers: did its training diverge"),
        (heads.Constant(1e5), "encoder", 0.0, "8e+05 steps wide, outside the coder's span"),
        (heads.Constant(2.0**19 / 8), "encoder", 0.0, "steps wide, outside the coder's span"),
        (heads.Diagonal(heads.exp), "encoder", 1e3, "steps wide, outside the coder's span"),
        (heads.Diagonal(heads.exp), "encoder", -1e4, "standard deviation of the model is zero"),
        (heads.Constant(1.0), "encoder", 1e12, "2^31 steps or more from the origin"),
    ],
)
def test_a_diverged_model_is_refused(
    head: heads.Head, parameter: str, value: float, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Autoencoder(encoder(head), decoder(heads.Logistic()), StandardNormal(D))
    with torch.no_grad():
        for p in getattr(model, parameter).parameters():
            p.fill_(value if p.dim() == 1 or value != value else 0.0)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        compress(model, grey(2))
    assert not capfd.readouterr().err, "the coder's own panic"


def test_files_are_verified_before_they_get_their_name(tmp_path, coded: tuple[Autoencoder, Tensor, bytes]) -> None:
    model, x, data = coded
    compressed = compress(model, x, batch_size=16)
    assert compressed.data == data
    path = tmp_path / "images.xpz"
    write_compressed(path, compressed, model, x)
    assert torch.equal(read_compressed(path, model), x)
    wrong = x.clone()
    wrong[0, 0, 0, 0] ^= 1
    other = tmp_path / "other.xpz"
    with pytest.raises(ValueError, match="was not written"):
        write_compressed(other, compressed, model, wrong)
    assert not other.exists()
    with pytest.raises(ValueError, match="does not exist"):
        read_compressed(other, model)


# -- the stack ----------------------------------------------------------------------------------------------------------------------------


def test_every_pop_undoes_its_push() -> None:
    start = seed_words(500, 1)
    stack = Stack(start, sealed=True)
    mean, scale = torch.randn(300, dtype=torch.float64) * 50, torch.exp(torch.randn(300, dtype=torch.float64) * 2 + 1)
    k = stack.pop_window(mean, scale)
    assert bool(((k - mean).abs() <= 16 * scale + 2).all())
    masses, p = torch.rand(300, 256), torch.rand(300)
    x, b = torch.randint(256, (300,)), torch.randint(2, (300,))
    stack.push_table(x, masses)
    stack.push_bits(b, p)
    stack.push_gaussian(k, mean, scale, 1 << 13)
    again = Stack(stack.words(), sealed=False)
    assert torch.equal(again.pop_gaussian(mean, scale, 1 << 13), k)
    assert torch.equal(again.pop_bits(p), b)
    assert torch.equal(again.pop_table(masses), x)
    again.push_window(k, mean, scale)
    assert np.array_equal(again.unsealed(), start)


def test_values_outside_an_alphabet_never_reach_the_coder() -> None:
    stack, zero, one = Stack(seed_words(50, 1), sealed=True), torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for k in (4, -4, 2**32):  # the last is 0 in 32 bits
        with pytest.raises(Outside):
            stack.push_gaussian(torch.tensor([k]), zero, one, 3)
        with pytest.raises(Outside):
            stack.push_table(torch.tensor([k]), torch.ones(1, 3))
    with pytest.raises(Outside):
        stack.push_window(torch.tensor([100]), zero, one)
    with pytest.raises(Outside):
        stack.push_bits(torch.tensor([2]), one)
    with pytest.raises(ValueError, match="not a number in"):
        stack.pop_bits(one * float("nan"))
    with pytest.raises(ValueError, match="zero or not a number"):
        stack.pop_gaussian(zero, zero, 3)


def test_windows_draw_from_the_gaussian() -> None:
    stack = Stack(seed_words(20_000, 2), sealed=True)
    mean, scale = torch.full((20_000,), 0.3, dtype=torch.float64), torch.full((20_000,), 5.0, dtype=torch.float64)
    k = stack.pop_window(mean, scale).double()
    assert float(k.mean()) == pytest.approx(0.3, abs=5 * 5 / 20_000**0.5)
    assert float(k.std()) == pytest.approx((25 + 1 / 12) ** 0.5, rel=0.03)


def test_an_empty_stack_raises_instead_of_making_up_symbols() -> None:
    stack = Stack(seed_words(4, 0), sealed=True)
    with pytest.raises(Shortage):
        stack.pop_window(torch.zeros(100, dtype=torch.float64), torch.ones(100, dtype=torch.float64))


def test_seed_words_are_fixed_and_never_zero() -> None:
    # the first outputs of SplitMix64 from 1234567: 6457827717110365317, 3203168211198807973 (Vigna's reference code)
    words = seed_words(3, 1234567)
    assert [int(w) for w in words[:2]] == [6457827717110365317 >> 32, 3203168211198807973 >> 32]
    assert bool((seed_words(100_000, 5) != 0).all())


def test_other_compressors_on_the_same_images() -> None:
    zero, x = torch.zeros(20, 1, 16, 16, dtype=torch.uint8), grey(20)
    assert all(rate < 0.4 for rate in general_purpose(zero).values())
    rates = general_purpose(x)
    assert {"gzip", "bz2", "lzma"} <= rates.keys()
    assert all(1 < rate < 9 for rate in rates.values())
    assert general_purpose(binary(20))["lzma"] < 2
    with pytest.raises(ValueError, match="uint8"):
        general_purpose(torch.rand(2, 1, 8, 8))
