"""What is particular to flows."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from expost.density import Flow, FullGaussian
from expost.seeds import generator
from expost.system.hashes import state_hash


def ring(n: int, seed: int) -> torch.Tensor:
    g = generator("ring", seed)
    angle = 6.2831853 * torch.rand(n, generator=g)
    return torch.stack([angle.cos(), angle.sin()], 1) * 3 + 0.15 * torch.randn(n, 2, generator=g) + 10


def test_learns_what_a_gaussian_cannot() -> None:
    z, other = ring(3000, 0), ring(1000, 1)
    flow = Flow(2, 2, (32, 32), steps=400, lr=5e-3).fit(z)
    with torch.no_grad():
        gain = float((flow().log_prob(other) - FullGaussian(2).fit(z)().log_prob(other)).mean())
        assert gain > 0.6
        radius = (flow().sample((1000,)) - 10).norm(dim=1)
    assert float(((radius > 2) & (radius < 4)).float().mean()) > 0.8
    assert flow.report is not None
    assert flow.report.held_out is not None
    with torch.no_grad():
        assert flow.report.held_out == pytest.approx(float(flow().log_prob(other).mean()), abs=0.15)


def test_units_do_not_matter() -> None:
    z = ring(500, 0)
    with torch.no_grad():
        base = Flow(2, 1, (8,), steps=30).fit(z)().log_prob(z)
        scaled = Flow(2, 1, (8,), steps=30).fit(1000 * z)().log_prob(1000 * z) + 2 * torch.log(torch.tensor(1000.0))
    torch.testing.assert_close(scaled, base, rtol=1e-2, atol=1e-2)


def test_early_stopping_and_seed() -> None:
    z = ring(60, 0)  # too few codes for the network: it overfits at once
    flow = Flow(2, 2, (64, 64), steps=2000, lr=1e-2, patience=3).fit(z)
    assert flow.report is not None
    assert "no improvement in 3" in flow.report.note
    assert flow.report.iterations is not None
    assert flow.report.iterations < 2000
    other = Flow(2, 1, (8,), steps=10)
    assert not torch.equal(next(other.fit(z, seed=0).parameters()).clone(), next(other.fit(z, seed=1).parameters()))


def test_building_one_draws_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    a, b = Flow(2), Flow(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_zuko_does_not_switch_off_validation() -> None:
    """In a process of its own, since zuko's side effect happens at its first import."""
    code = (
        "import torch; from torch.distributions import Distribution as D, Normal\n"
        "import sys, expost.density as e; assert 'zuko' not in sys.modules\n"
        "before = D._validate_args; e.Flow(2, steps=2).fit(torch.randn(20, 2))\n"
        "assert 'zuko' in sys.modules and D._validate_args is before, D._validate_args\n"
        "try: Normal(torch.zeros(1), -torch.ones(1))\n"
        "except ValueError: print('validated')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "validated", done.stderr


def test_without_zuko(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    monkeypatch.setitem(sys.modules, "zuko.flows", None)
    with pytest.raises(ImportError, match=r'pip install "expost\[flow\]"'):
        Flow(2)


@pytest.mark.parametrize("arguments", [{"kind": "realnvp"}, {"transforms": 0}, {"bins": 1}])
def test_bad_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Flow(2, **arguments)  # type: ignore[arg-type]


def test_fitting_under_no_grad() -> None:
    with torch.no_grad():
        fitted = Flow(2, 1, (8,), steps=5).fit(ring(50, 0))
    assert state_hash(fitted.state_dict(), {}) == state_hash(Flow(2, 1, (8,), steps=5).fit(ring(50, 0)).state_dict(), {})
