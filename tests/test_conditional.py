"""A network followed by a head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expost import heads
from expost.conditional import Conditional, network_precision


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (2, 1, 4)])
def test_any_leading_batch_shape(batch):
    encoder = Conditional(nn.Linear(5, 4), heads.Diagonal())
    c = torch.randn(*batch, 5)
    q = encoder(c)
    assert (q.batch_shape, q.event_shape) == (torch.Size(batch), (2,))
    flat = encoder(c.reshape(-1, 5))
    torch.testing.assert_close(q.mean.reshape(-1, 2), flat.mean)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_images_both_ways(batch):
    encoder = Conditional(nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Flatten(), nn.Linear(32, 4)), heads.Diagonal(), condition_dims=3)
    decoder = Conditional(nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1, 8, 8))), heads.CrossEntropy(), event_dims=3)
    q = encoder(torch.randn(*batch, 1, 8, 8))
    assert (q.batch_shape, q.event_shape) == (torch.Size(batch), (2,))
    p = decoder(q.rsample((4,)))
    assert (p.batch_shape, p.event_shape) == (torch.Size((4, *batch)), (1, 8, 8))


def test_the_network_always_sees_one_batch_dimension():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(x.shape)
            return super().forward(x)

    Conditional(Spy(3, 2), heads.Dirac())(torch.zeros(2, 4, 3))
    assert seen == [torch.Size((8, 3))]


def test_network_precision():
    dtypes = []

    class Spy(heads.Dirac):
        def forward(self, features, event_dims=1):
            dtypes.append(features.dtype)
            return super().forward(features, event_dims)

    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    inner = []
    net[0].register_forward_hook(lambda module, args, output: inner.append(output.dtype))
    conditional, c = Conditional(net, Spy()), torch.randn(4, 64)
    exact = conditional(c).mean
    with network_precision(torch.bfloat16):
        rounded = conditional(c).mean
        with network_precision(None):
            conditional(c)
    conditional(c)
    assert inner == [torch.float32, torch.bfloat16, torch.float32, torch.float32], "the block applies, nests and ends"
    assert dtypes == [torch.float32] * 4, "the head always sees float32"
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.05, rtol=0.05)
    rounded.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    with pytest.raises(RuntimeError), network_precision(torch.bfloat16):
        raise RuntimeError
    conditional(c)
    assert inner[-1] == torch.float32


def test_float64_stays_float64():
    assert Conditional(nn.Linear(3, 4).double(), heads.Diagonal())(torch.zeros(2, 3, dtype=torch.float64)).mean.dtype == torch.float64


def test_refusals():
    with pytest.raises(ValueError, match="at least 1"):
        Conditional(nn.Identity(), heads.Dirac(), event_dims=0)
    with pytest.raises(ValueError, match="condition of 3 or more dimensions"):
        Conditional(nn.Identity(), heads.Dirac(), condition_dims=3)(torch.zeros(2, 2))
