"""One contract over all heads: features of the stated size -> a distribution of the stated shape."""

from __future__ import annotations

import copy

import pytest
import torch

from expost import heads
from expost.distributions import normalised, point

HEADS = {
    "diagonal": lambda: heads.Diagonal(),
    "diagonal-exp": lambda: heads.Diagonal(heads.exp),
    "diagonal-softplus": lambda: heads.Diagonal(heads.softplus),
    "diagonal-exp-tanh": lambda: heads.Diagonal(heads.exp_tanh),
    "full": lambda: heads.FullCovariance(),
    "constant": lambda: heads.Constant(0.7),
    "dirac": lambda: heads.Dirac(),
    "bernoulli": lambda: heads.Bernoulli(),
    "cross-entropy": lambda: heads.CrossEntropy(),
    "gaussian-fixed": lambda: heads.Gaussian(0.5),
    "gaussian-sigmoid": lambda: heads.Gaussian(0.5, torch.sigmoid),
    "gaussian-shared": lambda: heads.Gaussian("shared"),
    "gaussian-optimal": lambda: heads.Gaussian("optimal"),
    "gaussian-pixel": lambda: heads.Gaussian("pixel", torch.sigmoid),
    "logistic": lambda: heads.Logistic(),
    "logistic-shared": lambda: heads.Logistic("shared", levels=16),
    "logistic-mixture": lambda: heads.LogisticMixture(3),
    "binned-gaussian": lambda: heads.BinnedGaussian(),
    "beta-binomial": lambda: heads.BetaBinomial(levels=2),
}
EVENTS = {"vector": (3,), "image": (2, 4, 5)}
BATCHES = [(), (1,), (6,), (2, 3), (2, 1, 3)]
CASES = [(h, e) for h in HEADS for e in EVENTS if not (h == "full" and e == "image")]


def build(name, event, batch):
    head = HEADS[name]()
    channels, *rest = EVENTS[event]
    features = torch.randn(*batch, head.size(channels), *rest, requires_grad=True)
    return head, features, head(features, len(EVENTS[event]))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("name", "event"), CASES)
def test_shapes(name, event, batch):
    _, features, p = build(name, event, batch)
    assert p.batch_shape == torch.Size(batch)
    assert p.event_shape == torch.Size(EVENTS[event])
    shape = torch.Size(batch) + torch.Size(EVENTS[event])
    assert p.mean.shape == p.variance.shape == point(p).shape == p.sample().shape == shape
    assert p.sample((4,)).shape == torch.Size((4,)) + shape
    assert p.sample((2, 2)).shape == torch.Size((2, 2)) + shape
    assert not p.sample().requires_grad
    assert p.mean.dtype == features.dtype


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("name", "event"), CASES)
def test_log_prob_and_gradients(name, event, batch):
    head, features, p = build(name, event, batch)
    if name == "dirac":
        with pytest.raises(ValueError, match="no density"):
            p.log_prob(p.sample())
        p.rsample().sum().backward()
    else:
        value = p.sample()
        log_prob = p.log_prob(value)
        assert log_prob.shape == torch.Size(batch)
        assert torch.isfinite(log_prob).all()
        assert p.log_prob(p.sample((3,))).shape == torch.Size((3, *batch))
        (log_prob.sum() + (p.rsample().sum() if p.has_rsample else 0)).backward()
    assert torch.isfinite(features.grad).all()
    assert features.grad.abs().sum() > 0
    for parameter in head.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize(("name", "event"), CASES)
def test_leading_dimensions_do_not_mix(name, event):
    """The distribution of one element of the batch is that of its features alone."""
    head, features, p = build(name, event, (2, 3))
    value = (p.sample() > 0.5).float() if name == "bernoulli" else p.sample()
    alone = head.eval()(features[1, 2], len(EVENTS[event]))
    p = head(features, len(EVENTS[event]))
    torch.testing.assert_close(point(p)[1, 2], point(alone))
    torch.testing.assert_close(p.variance[1, 2], alone.variance)
    if name != "dirac":
        torch.testing.assert_close(p.log_prob(value)[1, 2], alone.log_prob(value[1, 2]))


@pytest.mark.parametrize(("name", "event"), CASES)
def test_samples_have_the_stated_moments(name, event):
    _, _, p = build(name, event, ())
    draws = p.sample((3000,))
    spread = p.variance.detach().sqrt()
    assert bool(((draws.mean(0) - p.mean).abs() <= 5 * spread / 3000**0.5 + 1e-6).all())
    torch.testing.assert_close(draws.std(0), spread, rtol=0.15, atol=0.02)


@pytest.mark.parametrize("name", HEADS)
def test_normalised_is_stated(name):
    _, _, p = build(name, "vector", (2,))
    assert normalised(p) == (name not in ("dirac", "cross-entropy"))


@pytest.mark.parametrize("name", HEADS)
def test_heads_copy_and_save(name):
    """A head can be copied after use, and its state loads into a fresh one."""
    head, (channels,) = HEADS[name](), EVENTS["vector"]
    p = head(torch.nn.Linear(3, head.size(channels))(torch.randn(2, 3)))
    if name != "dirac":
        p.log_prob(p.sample())
    twin = copy.deepcopy(head)
    HEADS[name]().load_state_dict(twin.state_dict())
    assert repr(head)
