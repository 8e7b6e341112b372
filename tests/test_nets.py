"""Networks: shapes at the papers' sizes, exact parameter counts, layers that equal torch's, spectral norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expost import nets
from expost.fast import gemm, layers
from expost.nets.shapes import Crop, Maps, Pad, Rows
from expost.papers.bozkurt2018 import nets as bozkurt_nets
from expost.papers.dai2019 import nets as dai_nets
from expost.papers.dai2019 import residual as residual_nets
from expost.papers.dai2019.residual import Residual
from expost.papers.ghosh2020 import nets as ghosh_nets
from expost.papers.manoj2018 import nets as manoj_nets
from expost.papers.yu2020 import nets as yu_nets
from expost.papers.yu2020 import squeezed as squeezed_nets
from expost.seeds import seeded
from expost.train.second_stage import SkipToEnd

MNIST, PADDED, CIFAR, CELEBA = (1, 28, 28), (1, 32, 32), (3, 32, 32), (3, 64, 64)
Build = Callable[[], nn.Module]


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def lean(build: Build) -> nn.Module:
    """The net without its numbers: sizes of tens of millions of parameters cost no time to count."""
    with torch.device("meta"):
        return build()


# ---------------------------------------------------------------------------------------------------- parameter counts

LOG_GAMMA = 1  # a scalar parameter of the Gaussian head; weights, biases, BN scales and shifts are the nets'


@pytest.mark.parametrize(("shape", "expected"), [(MNIST, 13_331_586), (CIFAR, 17_273_604), (CELEBA, 67_678_980)])
def test_neutral_net_of_dai_has_the_papers_size(shape: tuple[int, int, int], expected: int) -> None:
    """Latent 64, both heads as one linear layer of 128 outputs, one log γ. u and v of the spectral norm are buffers, not parameters."""
    encoder = lean(lambda: dai_nets.dai_encoder(shape, 2 * 64, spectral=False))
    decoder = lean(lambda: dai_nets.dai_decoder(64, shape, shape[0]))
    assert count(encoder, decoder) + LOG_GAMMA == expected


def test_spectral_norm_adds_no_parameters() -> None:
    assert count(dai_nets.dai_encoder((1, 8, 8), 4, spectral=True)) == count(dai_nets.dai_encoder((1, 8, 8), 4, spectral=False))


def test_second_stage_of_dai_has_the_papers_size() -> None:
    encoder, decoder = lean(lambda: SkipToEnd(64, 2 * 64, (1024,) * 3)), lean(lambda: SkipToEnd(64, 64, (1024,) * 3))
    # 64->1024, 2 x 1024->1024, (1024+64)->128 | the same with ->64 at the end | log γ
    trunk = 64 * 1024 + 1024 + 2 * (1024 * 1024 + 1024)
    assert count(encoder) == trunk + (1024 + 64) * 128 + 128
    assert count(encoder, decoder) + LOG_GAMMA == 4_540_609


@pytest.mark.parametrize(("shape", "latent", "expected"), [(PADDED, 16, 22_689_681), (CIFAR, 128, 30_500_867)])
def test_nets_of_ghosh_have_the_papers_size(shape: tuple[int, int, int], latent: int, expected: int) -> None:
    """A deterministic encoder (out = d), γ fixed: nothing but the nets; the moving averages of BN are buffers and not counted."""
    encoder, decoder = (
        lean(lambda: ghosh_nets.ghosh_encoder(shape, latent)),
        lean(lambda: ghosh_nets.ghosh_decoder(latent, shape, shape[0])),
    )
    assert count(encoder, decoder) == expected


def test_celeba_nets_of_ghosh_have_the_papers_size() -> None:
    encoder = lean(lambda: ghosh_nets.ghosh_celeba_encoder(CELEBA, 64))
    decoder = lean(lambda: ghosh_nets.ghosh_celeba_decoder(64, CELEBA, 3))
    assert count(encoder, decoder) == 39_742_531


BOZKURT_DECODERS = {
    (): 39984,
    (100,): 84284,
    (200,): 167784,
    (400,): 334784,
    (100, 100): 94384,
    (100, 200): 182884,
    (200, 200): 207984,
    (100, 400): 359884,
    (200, 400): 404984,
    (400, 400): 495184,
    (100, 100, 100): 104484,
    (100, 100, 200): 192984,
    (100, 200, 200): 223084,
    (200, 200, 200): 248184,
    (100, 100, 400): 369984,
    (100, 200, 400): 420084,
    (200, 200, 400): 445184,
    (100, 400, 400): 520284,
    (200, 400, 400): 565384,
    (400, 400, 400): 655584,
}


def test_the_twenty_decoders_of_bozkurt() -> None:
    found = {
        tuple(reversed(h)): count(lean(lambda h=h: bozkurt_nets.bozkurt_decoder(50, MNIST, 1, h))) for h in bozkurt_nets.BOZKURT_HIDDEN
    }
    assert found == BOZKURT_DECODERS
    widths = [m.out_features for m in bozkurt_nets.bozkurt_encoder(MNIST, 100, (400, 200, 100)).modules() if isinstance(m, nn.Linear)]
    assert widths == [400, 200, 100, 100]


def test_nets_of_yu_have_the_papers_size() -> None:
    """v and b of six layers of 1024 that see 2, 1026, ... inputs, one linear layer of 4 that sees 6146; one g per output."""
    hidden = sum((2 + 1024 * i) * 1024 + 1024 + 1024 for i in range(6))
    assert hidden + (2 + 6 * 1024) * 4 + 4 + 4 == 15_777_808
    assert count(yu_nets.yu_encoder(2, 4)) == count(yu_nets.yu_decoder(2, 4)) == 15_777_808


def test_small_pair_is_small() -> None:
    assert 200_000 <= count(nets.small_encoder(MNIST, 32), nets.small_decoder(16, MNIST, 1)) <= 700_000


# ------------------------------------------------------------------------------------------------------ shapes and learning

PAIRS: dict[str, tuple[Build, Build, tuple[int, ...], int]] = {  # encoder, decoder, shape of x, channels of the decoder's maps
    "bozkurt": (lambda: bozkurt_nets.bozkurt_encoder(MNIST, 8), lambda: bozkurt_nets.bozkurt_decoder(8, MNIST, 1), MNIST, 1),
    "bozkurt linear": (lambda: bozkurt_nets.bozkurt_encoder(CIFAR, 8, ()), lambda: bozkurt_nets.bozkurt_decoder(8, CIFAR, 6, ()), CIFAR, 6),
    "dai 28": (lambda: dai_nets.dai_encoder(MNIST, 8), lambda: dai_nets.dai_decoder(8, MNIST, 1), MNIST, 1),
    "dai 32": (lambda: dai_nets.dai_encoder(CIFAR, 8), lambda: dai_nets.dai_decoder(8, CIFAR, 6), CIFAR, 6),
    "residual 32": (
        lambda: residual_nets.dai_residual_encoder(PADDED, 8, base=4),
        lambda: residual_nets.dai_residual_decoder(8, PADDED, 1, base=4),
        PADDED,
        1,
    ),
    "residual 64, code": (
        lambda: residual_nets.dai_residual_encoder(CELEBA, 8, base=4, blocks=1, pool="mean"),
        lambda: residual_nets.dai_residual_decoder(8, CELEBA, 3, base=4, blocks=1),
        CELEBA,
        3,
    ),
    "wae": (
        lambda: residual_nets.dai_wae_encoder((3, 16, 16), 8),
        lambda: residual_nets.dai_wae_decoder(8, (3, 16, 16), 3),
        (3, 16, 16),
        3,
    ),
    "ghosh": (lambda: ghosh_nets.ghosh_encoder(PADDED, 8, width=8), lambda: ghosh_nets.ghosh_decoder(8, PADDED, 1, width=8), PADDED, 1),
    "ghosh sn": (
        lambda: ghosh_nets.ghosh_encoder(CIFAR, 8, width=8, spectral=True),
        lambda: ghosh_nets.ghosh_decoder(8, CIFAR, 6, width=8, spectral=True),
        CIFAR,
        6,
    ),
    "ghosh celeba": (
        lambda: ghosh_nets.ghosh_celeba_encoder(CELEBA, 8, width=8),
        lambda: ghosh_nets.ghosh_celeba_decoder(8, CELEBA, 3, width=8, spectral=True),
        CELEBA,
        3,
    ),
    "manoj": (lambda: manoj_nets.manoj_encoder(MNIST, 8), lambda: manoj_nets.manoj_decoder(8, MNIST, 1), MNIST, 1),
    "manoj fc": (lambda: manoj_nets.manoj_fc_encoder(MNIST, 8), lambda: manoj_nets.manoj_fc_decoder(8, MNIST, 1), MNIST, 1),
    "small digits": (lambda: nets.small_encoder((1, 8, 8), 8), lambda: nets.small_decoder(8, (1, 8, 8), 1), (1, 8, 8), 1),
    "small 28": (lambda: nets.small_encoder(MNIST, 8), lambda: nets.small_decoder(8, MNIST, 2), MNIST, 2),
    "small 32": (lambda: nets.small_encoder(CIFAR, 8), lambda: nets.small_decoder(8, CIFAR, 6), CIFAR, 6),
    "small odd": (lambda: nets.small_encoder((2, 13, 50), 8), lambda: nets.small_decoder(8, (2, 13, 50), 2), (2, 13, 50), 2),
    "mlp": (lambda: nets.mlp_encoder((1, 8, 8), 8), lambda: nets.mlp_decoder(8, (1, 8, 8), 1), (1, 8, 8), 1),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_has_the_right_shapes_and_every_parameter_learns(name: str) -> None:
    make_encoder, make_decoder, shape, channels = PAIRS[name]
    with seeded("nets", name):
        encoder, decoder = make_encoder(), make_decoder()
        x = torch.rand(6, *shape)
        features = encoder(x)
        assert features.shape == (6, 8)
        maps = decoder(features)
        assert maps.shape == (6, channels, *shape[1:])
        (maps * torch.randn_like(maps)).sum().backward()
    for side, net in (("encoder", encoder), ("decoder", decoder)):
        for key, p in net.named_parameters():
            assert p.grad is not None, f"{side} {key}"
            assert torch.isfinite(p.grad).all(), f"{side} {key}"
            # a bias in front of batch normalisation cancels: its gradient is rounding only, so it is not asked to be large
            assert key.endswith("bias") or p.grad.abs().max() > 0, f"{side} {key}"


@pytest.mark.parametrize("maps", [False, True])
def test_squeezed_pair_has_the_right_shapes_and_learns(maps: bool) -> None:
    shape = (3, 16, 8)
    encoder = squeezed_nets.squeezed_encoder(shape, 6, 8, maps=maps)
    decoder = squeezed_nets.squeezed_decoder(6, shape, 5, 8, maps=maps)
    optimiser = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], 1e-2)
    before = [p.clone() for p in (*encoder.parameters(), *decoder.parameters())]
    for _ in range(2):  # a block's second convolution starts at zero, so its first one learns from the second step on
        z = encoder(torch.rand(6, *shape))
        assert z.shape == ((6, 6, 4, 2) if maps else (6, 6))
        features = decoder(z)
        assert features.shape == (6, 5, 16, 8)
        optimiser.zero_grad()
        (features * torch.randn_like(features)).sum().backward()
        optimiser.step()
    for (name, p), start in zip((*encoder.named_parameters(), *decoder.named_parameters()), before, strict=True):
        assert not torch.equal(p, start), name


def test_squeezed_blocks_start_as_the_identity_and_images_do_not_touch() -> None:
    encoder = squeezed_nets.squeezed_encoder((1, 8, 8), 4, 4)
    x = torch.rand(3, 1, 8, 8)
    assert torch.allclose(encoder(x)[:1], encoder(x[:1]), atol=1e-6)
    outer = squeezed_nets.maps_encoder((2, 4, 4), 6, 8)
    assert outer(torch.rand(3, 2, 4, 4)).shape == (3, 6)
    assert squeezed_nets.maps_decoder(6, (2, 4, 4), 4, 8)(torch.rand(3, 6)).shape == (3, 4, 4, 4)


@pytest.mark.parametrize("size", range(8, 65, 7))
def test_small_pair_takes_every_size(size: int) -> None:
    shape = (1, size, 72 - size)
    z = nets.small_encoder(shape, 4, width=4).eval()(torch.rand(2, *shape))
    assert nets.small_decoder(4, shape, 3, width=4).eval()(z).shape == (2, 3, *shape[1:])


def test_vector_nets() -> None:
    z = torch.randn(5, 6)
    assert SkipToEnd(6, 12, (16, 16))(z).shape == (5, 12)
    assert SkipToEnd(6, 7, (16,))(z).shape == (5, 7)
    assert yu_nets.yu_encoder(6, 4, growth=8, depth=2)(z).shape == (5, 4)
    assert yu_nets.yu_decoder(6, 3, growth=8, depth=0)(z).shape == (5, 3)


def test_second_stage_sees_its_input_twice() -> None:
    net: Any = SkipToEnd(3, 2, (8,))
    with torch.no_grad():
        net.hidden[0][0].weight.zero_()
        net.hidden[0][0].bias.zero_()
        z = torch.randn(4, 3)
        torch.testing.assert_close(net(z), z @ net.last.weight[:, :3].T + net.last.bias)


def test_a_net_of_the_paper_sizes_its_layers_as_the_paper() -> None:
    decoder = lean(lambda: residual_nets.dai_residual_decoder(64, CELEBA, 3))
    assert decoder[0].out_features == 4096  # type: ignore[index]
    decoder = lean(lambda: residual_nets.dai_residual_decoder(64, CIFAR, 3))
    assert decoder[0].out_features == 2048  # type: ignore[index]
    encoder = lean(lambda: residual_nets.dai_residual_encoder(CELEBA, 128))
    assert [m.shortcut.in_features for m in encoder if isinstance(m, Residual) and isinstance(m.shortcut, nn.Linear)] == [8192, 512]  # type: ignore[union-attr, attr-defined]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ghosh_nets.ghosh_encoder(MNIST, 16), r"multiples of 16, not 28x28: .*pad_to=32"),
        (lambda: residual_nets.dai_residual_decoder(8, MNIST, 1), r"power of two, not 28x28: .*pad_to=32"),
        (lambda: dai_nets.dai_encoder((1, 30, 30), 8), r"pad_to=32"),
        (lambda: manoj_nets.manoj_encoder((1, 8, 8), 8), r"size=16.*network=small"),
        (lambda: nets.small_encoder((1, 4, 4), 8), r"at least 8"),
        (lambda: squeezed_nets.squeezed_encoder((1, 30, 30), 8), r"multiples of 4, not 30x30: pad the images to 32x32 \(pad_to=32\)"),
        (lambda: nets.small_encoder((28, 28), 8), r"channels, height, width"),
        (lambda: nets.mlp_decoder(8, MNIST, 0), r"at least 1 output"),
        (lambda: nets.mlp([3]), r"input and an output"),
        (lambda: residual_nets.dai_residual_encoder(CIFAR, 8, pool="max"), r"'flatten'"),  # type: ignore[arg-type]
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_remedy(build: Build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_initial_values_follow_the_papers() -> None:
    with seeded("init"):
        dai: Any = dai_nets.dai_encoder(MNIST, 128, spectral=False)
        ghosh: Any = ghosh_nets.ghosh_decoder(16, (1, 16, 16), 1)
    conv, linear = dai[2].weight, dai[6].weight
    assert conv.abs().max() <= 0.04  # truncated at two standard deviations
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    assert dai[6].bias.abs().max() == 0
    kernel = ghosh[2].weight  # 1024 -> 512, 4x4: uniform on ±√(6 / (16 · 1536))
    assert kernel.abs().max().item() == pytest.approx((6 / (16 * 1536)) ** 0.5, rel=1e-3)
    assert (ghosh[3].eps, ghosh[3].momentum, dai[3].momentum) == (1e-3, 0.01, 0.001)


# -------------------------------------------------------------------------------------------------- TensorFlow's 'SAME' rule


def same_indices(size: int, kernel: int, stride: int) -> list[list[tuple[int, int]]]:
    """Per output of TF's 'SAME' convolution: the (input, tap) pairs it sums. Total padding (⌈n/s⌉-1)s + k - n, the smaller half first."""
    out = -(-size // stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    return [[(i * stride + t - before, t) for t in range(kernel) if 0 <= i * stride + t - before < size] for i in range(out)]


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (5, 1), (3, 1), (5, 2), (3, 2)])
def test_convolutions_are_tensorflows_same(kernel: int, stride: int) -> None:
    layer = {
        (4, 2): [layers.Conv2d(1, 1, 4, 2, 1, bias=False)],
        (5, 1): [layers.Conv2d(1, 1, 5, 1, 2, bias=False)],
        (3, 1): [layers.Conv2d(1, 1, 3, 1, 1, bias=False)],
        (5, 2): [Pad(1, 2), layers.Conv2d(1, 1, 5, 2, bias=False)],
        (3, 2): [Pad(0, 1), layers.Conv2d(1, 1, 3, 2, bias=False)],
    }[kernel, stride]
    x = torch.randn(8, 8)
    pairs = same_indices(8, kernel, stride)
    weight = layer[-1].weight[0, 0]  # type: ignore[index]
    expected = torch.stack([torch.stack([sum(x[a, b] * weight[s, t] for a, s in p for b, t in q) for q in pairs]) for p in pairs])  # type: ignore[misc]
    torch.testing.assert_close(nn.Sequential(*layer)(x[None, None])[0, 0], expected)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (5, 2), (3, 2), (4, 1), (5, 1)])
def test_transposed_convolutions_are_tensorflows_same(kernel: int, stride: int) -> None:
    """TF defines it as the gradient of the 'SAME' convolution that maps the large image to the small one."""
    deconv = nets.ConvTranspose2d
    layer = {
        (4, 2): [deconv(1, 1, 4, 2, 1, bias=False)],
        (5, 2): [deconv(1, 1, 5, 2, 1, bias=False), Crop()],
        (3, 2): [deconv(1, 1, 3, 2, bias=False), Crop()],
        (4, 1): [deconv(1, 1, 4, 1, 1, bias=False), Crop()],
        (5, 1): [deconv(1, 1, 5, 1, 2, bias=False)],
    }[kernel, stride]
    x = torch.randn(4, 4)
    weight = layer[0].weight[0, 0].detach()  # type: ignore[index]
    expected = torch.zeros(4 * stride, 4 * stride)
    pairs = same_indices(4 * stride, kernel, stride)
    for i, p in enumerate(pairs):
        for j, q in enumerate(pairs):
            for a, s in p:
                for b, t in q:
                    expected[a, b] += x[i, j] * weight[s, t]
    torch.testing.assert_close(nn.Sequential(*layer)(x[None, None])[0, 0].detach(), expected)


def test_rows_and_maps_are_inverse_and_free() -> None:
    x = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    rows = Rows()(x)
    assert rows.data_ptr() == x.data_ptr()
    assert torch.equal(Maps(3, 4, 5)(rows), x)
    assert torch.equal(rows[0, :3], x[0, :, 0, 0])


# ------------------------------------------------------------------------------------------------------------ fast layers

GEOMETRIES = [  # kernel, stride, padding, output padding, height, width
    ((3, 3), (2, 2), (1, 1), (0, 0), 4, 5),
    ((3, 3), (2, 2), (1, 1), (1, 1), 5, 3),
    ((4, 4), (2, 2), (1, 1), (0, 0), 3, 6),
    ((5, 5), (2, 2), (2, 2), (1, 1), 5, 4),
    ((4, 3), (3, 2), (0, 1), (2, 1), 6, 5),
    ((4, 4), (1, 1), (1, 1), (0, 0), 3, 4),
    ((1, 1), (1, 1), (0, 0), (0, 0), 3, 3),
    ((2, 2), (3, 3), (0, 0), (0, 0), 7, 7),
]


def _arguments(kernel: tuple[int, int], height: int, width: int, transposed: bool) -> list[Tensor]:
    weight = torch.randn(2, 3, *kernel) if transposed else torch.randn(3, 2, *kernel)
    return [t.double().requires_grad_() for t in (torch.randn(2, 2, height, width), weight, torch.randn(3))]


@pytest.mark.parametrize(("kernel", "stride", "padding", "output_padding", "height", "width"), GEOMETRIES)
@pytest.mark.parametrize(("chunk", "direct"), [(gemm.CHUNK, False), (1, False), (gemm.CHUNK, True)])
def test_products_and_their_gradients(
    kernel: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    height: int,
    width: int,
    chunk: int,
    direct: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gemm, "CHUNK", chunk)  # 1 cuts the batch into single images

    def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gemm.ConvAsProduct.apply(x, weight, bias, stride, padding, x.dtype, direct)

    def deconv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gemm.ConvTransposeAsProduct.apply(x, weight, bias, stride, padding, output_padding, x.dtype, direct)

    inputs = _arguments(kernel, height, width, transposed=False)
    torch.testing.assert_close(conv(*inputs), F.conv2d(*inputs, stride, padding))
    assert torch.autograd.gradcheck(conv, inputs)
    inputs = _arguments(kernel, height, width, transposed=True)
    torch.testing.assert_close(deconv(*inputs), F.conv_transpose2d(*inputs, stride, padding, output_padding))
    assert torch.autograd.gradcheck(deconv, inputs)


def test_gradients_of_gradients() -> None:
    """A gradient penalty differentiates the decoder's gradient again."""
    for transposed in (False, True):
        inputs = _arguments((3, 3), 4, 3, transposed)
        if transposed:
            assert torch.autograd.gradgradcheck(
                lambda *a: gemm.ConvTransposeAsProduct.apply(*a, (2, 2), (1, 1), (0, 0), torch.float64), inputs
            )
        else:
            assert torch.autograd.gradgradcheck(lambda *a: gemm.ConvAsProduct.apply(*a, (2, 2), (1, 1), torch.float64), inputs)
    linear = [torch.randn(*s).double().requires_grad_() for s in ((3, 4), (2, 4), (2,))]
    assert torch.autograd.gradcheck(gemm.LinearAsProduct.apply, linear)
    assert torch.autograd.gradgradcheck(gemm.LinearAsProduct.apply, linear)


def test_fold_is_the_transpose_of_unfold() -> None:
    """⟨unfold(x), c⟩ = ⟨x, fold(c)⟩."""
    x, kernel, stride, before, size = torch.randn(2, 5, 6, 3).double(), (3, 2), (2, 1), (1, 0), (3, 5)
    rows = gemm.unfold(x, kernel, stride, before, size)
    c = torch.randn_like(rows)
    back = gemm.fold(c, (2, *size), kernel, stride, before, (5, 6))
    torch.testing.assert_close((rows * c).sum(), (x * back).sum())


TORCH_LAYER = {
    "conv": lambda: (nn.Conv2d(128, 160, 4, 2, 1), nets.Conv2d(128, 160, 4, 2, 1), torch.randn(3, 128, 7, 7)),
    "deconv": lambda: (
        nn.ConvTranspose2d(160, 128, 5, 2, 1, output_padding=1),
        nets.ConvTranspose2d(160, 128, 5, 2, 1, output_padding=1),
        torch.randn(3, 160, 4, 4),
    ),
    "conv, gradient only": lambda: (nn.Conv2d(128, 160, 4, 2, 1), nets.Conv2d(128, 160, 4, 2, 1), torch.randn(60, 128, 7, 7)),
    "deconv, gradient only": lambda: (
        nn.ConvTranspose2d(160, 128, 4, 2, 1),
        nets.ConvTranspose2d(160, 128, 4, 2, 1),
        torch.randn(60, 160, 4, 4),
    ),
    "linear": lambda: (nn.Linear(400, 300), nets.Linear(400, 300), torch.randn(10, 20, 400)),
}


@pytest.fixture(params=TORCH_LAYER)
def layer_pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module, Tensor, list[str]]:
    """torch's layer, ours with the same numbers, an input, and a list that grows when ours takes the product."""
    taken: list[str] = []
    for name in ("ConvAsProduct", "ConvTransposeAsProduct", "LinearAsProduct"):
        function = getattr(gemm, name)

        def apply(*args: Any, _function: Any = function, _name: str = name) -> Tensor:
            taken.append(_name)
            return _function.apply(*args)

        monkeypatch.setattr(layers, name, type(name, (), {"apply": staticmethod(apply)}))
    theirs, ours, x = TORCH_LAYER[request.param]()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, x, taken


def _run(layer: nn.Module, x: Tensor, gradient: Tensor, bfloat16: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        y = layer(x)
    y.backward(gradient.to(y.dtype))
    assert x.grad is not None
    return [y.detach(), x.grad, *[p.grad for p in layer.parameters() if p.grad is not None]]


def test_fast_layer_equals_torchs_in_float32(layer_pair: tuple[nn.Module, nn.Module, Tensor, list[str]]) -> None:
    theirs, ours, x, taken = layer_pair
    gradient = torch.randn_like(theirs(x))
    for a, b in zip(_run(ours, x, gradient, False), _run(theirs, x, gradient, False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * float(b.abs().max()))
    assert taken


def test_fast_layer_under_bfloat16_is_as_near_to_float32_as_torchs(layer_pair: tuple[nn.Module, nn.Module, Tensor, list[str]]) -> None:
    theirs, ours, x, taken = layer_pair
    gradient = torch.randn_like(theirs(x))
    exact = _run(copy.deepcopy(theirs), x, gradient, False)
    mine, torchs = _run(ours, x, gradient, True), _run(theirs, x, gradient, True)
    assert mine[0].dtype == torch.bfloat16
    assert {g.dtype for g in mine[1:]} == {torch.float32}
    for a, b, e in zip(mine, torchs, exact, strict=True):
        ours_off, theirs_off = (a.float() - e).norm() / e.norm(), (b.float() - e).norm() / e.norm()
        assert ours_off <= max(2 * float(theirs_off), 2**-8)
    assert bool(taken) == (not isinstance(ours, nn.Linear))


def test_one_channel_keeps_the_whole_net_channels_last() -> None:
    """A single channel is both layouts at once; were it taken for the other, every layer after it would be copied to and fro."""
    net = nn.Sequential(nets.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nets.Conv2d(8, 16, 4, 2, 1))
    y = net(torch.rand(2, 1, 28, 28))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert net[0](torch.rand(2, 1, 28, 28)).is_contiguous(memory_format=torch.channels_last)


def test_layers_keep_torchs_initial_values_and_state() -> None:
    for theirs, ours in (
        (nn.Conv2d, nets.Conv2d),
        (nn.ConvTranspose2d, nets.ConvTranspose2d),
    ):
        with seeded("layer"):
            a = theirs(3, 5, 4, 2, 1)
        with seeded("layer"):
            b = ours(3, 5, 4, 2, 1)
        assert list(a.state_dict()) == list(b.state_dict())
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.jvp itself
def test_other_paths_are_torchs(layer_pair: tuple[nn.Module, nn.Module, Tensor, list[str]]) -> None:
    """float64, torch.func and forward mode never reach the products, and are right."""
    theirs, ours, x, taken = layer_pair
    torch.testing.assert_close(copy.deepcopy(ours).double()(x.double()), copy.deepcopy(theirs).double()(x.double()))
    with torch.no_grad():
        tangent = torch.randn_like(x)
        a, b = (torch.func.jvp(layer, (x,), (tangent,))[1] for layer in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.func.vmap(ours)(x[None])[0], theirs(x), rtol=1e-4, atol=1e-4)
    assert not taken
    with torch.no_grad():
        assert not ours(x).requires_grad
    assert taken


def test_few_weights_and_unusual_layers_are_torchs(layer_pair: tuple[nn.Module, nn.Module, Tensor, list[str]]) -> None:
    *_, taken = layer_pair
    for layer, x in (
        (nets.Conv2d(1, 128, 4, 2, 1), torch.randn(50, 1, 28, 28)),
        (nets.Conv2d(512, 512, 3, padding="same"), torch.randn(1, 512, 2, 2)),
        (nets.Conv2d(512, 512, 3, padding=1, padding_mode="reflect"), torch.randn(1, 512, 2, 2)),
        (nets.Conv2d(512, 512, 3, padding=2, dilation=2), torch.randn(1, 512, 2, 2)),
        (nets.Conv2d(1024, 1024, 3, padding=1, groups=2), torch.randn(1, 1024, 2, 2)),
        (nets.ConvTranspose2d(256, 1, 3, 2, 1), torch.randn(20, 256, 14, 14)),
        (nets.Linear(4, 4), torch.randn(3, 4)),
    ):
        parent: Any = type(layer).__mro__[1]
        torch.testing.assert_close(layer(x), parent.forward(layer, x))
    assert not taken
    with pytest.raises(RuntimeError):
        nets.Conv2d(512, 512, 4)(torch.randn(1, 512, 2, 2))


def test_training_is_deterministic() -> None:
    def train() -> list[Tensor]:
        with seeded("train"):
            net = nn.Sequential(nets.Conv2d(128, 160, 4, 2, 1), nn.BatchNorm2d(160), nn.ReLU(), nets.ConvTranspose2d(160, 128, 4, 2, 1))
            optimiser = torch.optim.Adam(net.parameters(), fused=True)
            for _ in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = net(torch.randn(2, 128, 8, 8)).float().square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return [p.detach() for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(), train(), strict=True))


# -------------------------------------------------------------------------------------------------------------- spectral norm


def _matrix(layer: Any) -> Tensor:
    return layer.weight.detach().flatten(1)  # transposed kernels too: C_in x (C_out k k)


def test_spectral_norm_reaches_one() -> None:
    with seeded("sn"):
        net = nets.spectrally_normalised(
            nn.Sequential(nets.Conv2d(3, 8, 4, 2, 1), nets.ConvTranspose2d(8, 6, 4, 2, 1), Rows(), nets.Linear(6 * 64, 5))
        )
        for _ in range(30):
            net(torch.randn(2, 3, 8, 8))
    net.eval()
    for layer in (net[0], net[1], net[3]):
        assert float(torch.linalg.matrix_norm(_matrix(layer), 2)) == pytest.approx(1, abs=2e-2)


def test_spectral_state_is_saved_and_evaluation_stands_still() -> None:
    def build(seed: int) -> nn.Module:
        with seeded("sn", seed):
            return ghosh_nets.ghosh_decoder(4, (1, 8, 8), 1, width=4, spectral=True)

    a, again, other = build(0), build(0), build(1)
    z = torch.randn(3, 4)
    assert torch.equal(a(z), again(z))
    assert {k.rsplit(".", 1)[-1] for k in a.state_dict()} >= {"original", "_u", "_v"}
    other.load_state_dict(a.state_dict())
    a.eval(), other.eval()
    assert torch.equal(a(z), other(z))
    assert torch.equal(a(z), a(z))


def test_spectral_norm_steps_once_per_training_forward_on_the_fast_path() -> None:
    with seeded("sn"):
        layer: Any = nets.spectrally_normalised(nets.Conv2d(128, 160, 4, 2, 1))
        x = torch.randn(1, 128, 4, 4)
    parametrisation = layer.parametrizations.weight[0]
    reference = copy.deepcopy(parametrisation)
    reference(layer.parametrizations.weight.original)
    layer(x).sum().backward()
    assert torch.equal(parametrisation._u, reference._u)
    grad = layer.parametrizations.weight.original.grad
    assert grad is not None
    assert torch.isfinite(grad).all()


def test_spectral_norm_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        nets.spectrally_normalised(nn.ReLU())
    with pytest.raises(ValueError, match="already"):
        nets.spectrally_normalised(nets.spectrally_normalised(nn.Linear(2, 2)))


@pytest.mark.parametrize(("kernel", "stride", "padding", "side"), [(4, 2, 1, 3), (4, 2, 1, 2), (5, 2, 2, 3), (3, 1, 1, 1), (5, 1, 2, 2)])
def test_taps_that_only_meet_padding_are_left_out_and_change_nothing(kernel: int, stride: int, padding: int, side: int) -> None:
    """With few rows for its weights the layer takes the product; results and gradients are torch's."""
    from expost.fast.layers import Conv2d

    ours = Conv2d(160, 160, kernel, stride, padding)
    theirs = nn.Conv2d(160, 160, kernel, stride, padding)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 160, side, side)
    results = []
    for layer in (ours, theirs):
        seen = x.clone().requires_grad_()
        y = layer(seen)
        y.square().sum().backward()
        results.append((y, seen.grad, layer.weight.grad, layer.bias.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding", "side"),
    [(3, 2, 1, 0, 4), (3, 2, 1, 1, 2), (4, 2, 1, 0, 2), (5, 2, 2, 1, 3), (4, 1, 2, 0, 3), (5, 3, 2, 0, 2), (3, 1, 1, 0, 1)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_transposed_products_tap_by_tap_are_torchs(
    kernel: int, stride: int, padding: int, output_padding: int, side: int, dtype: torch.dtype
) -> None:
    """Small maps, where much of one product would fall outside the image: results, gradients, and gradients of gradients."""
    from expost.fast.gemm import ConvTransposeAsProduct, _worthwhile_taps

    out = (side - 1) * stride - 2 * padding + kernel + output_padding
    assert _worthwhile_taps((side, side), (out, out), (kernel, kernel), (stride, stride), (padding, padding))
    x = torch.randn(3, 6, side, side, dtype=dtype, requires_grad=True)
    weight = torch.randn(6, 5, kernel, kernel, dtype=dtype, requires_grad=True)
    bias = torch.randn(5, dtype=dtype, requires_grad=True)
    args = (stride, stride), (padding, padding), (output_padding, output_padding)
    ours = ConvTransposeAsProduct.apply(x, weight, bias, *args, dtype)
    theirs = F.conv_transpose2d(x, weight, bias, *args)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    pull = torch.randn_like(theirs)
    for a, b in zip(torch.autograd.grad(ours, (x, weight, bias), pull), torch.autograd.grad(theirs, (x, weight, bias), pull), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda *inputs: ConvTransposeAsProduct.apply(*inputs, *args, dtype), (x, weight, bias))
