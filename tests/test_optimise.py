"""The gradient loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from expost.optimise import minimise
from expost.seeds import generator


def line(n: int = 200) -> Tensor:
    x = torch.randn(n, 1, generator=generator("line"))
    return torch.cat([x, 2 * x + 1], 1)


def squares(w: Tensor) -> object:
    return lambda batch: (batch[:, :1] * w[0] + w[1] - batch[:, 1:]).square().mean()


def test_finds_the_minimum() -> None:
    w = torch.zeros(2, requires_grad=True)
    trace = minimise(squares(w), [w], data=line(), epochs=60, batch_size=20, lr=0.05)  # type: ignore[arg-type]
    torch.testing.assert_close(w.detach(), torch.tensor([2.0, 1.0]), atol=1e-2, rtol=0)
    assert trace.steps == len(trace.losses) == 600
    assert trace.stopped == "all steps done"
    assert trace.losses[-1] < 1e-3 < trace.losses[0]


def test_an_epoch_sees_every_row_once() -> None:
    seen: list[Tensor] = []
    w = torch.zeros(1, requires_grad=True)

    def loss(batch: Tensor) -> Tensor:
        seen.append(batch)
        return w.sum() * batch.sum()

    data = torch.arange(12.0)[:, None]
    minimise(loss, [w], data=data, epochs=2, batch_size=4)
    first, second = torch.cat(seen[:3])[:, 0], torch.cat(seen[3:])[:, 0]
    assert torch.equal(first.sort().values, torch.arange(12.0))
    assert torch.equal(second.sort().values, torch.arange(12.0))
    assert not torch.equal(first, second)


def test_the_same_seed_is_the_same_run_and_the_global_generator_is_left_alone() -> None:
    def run(seed: int) -> tuple[Tensor, list[float]]:
        w = torch.zeros(2, requires_grad=True)
        noisy = lambda batch: squares(w)(batch) + (torch.randn(2) * w).sum()  # type: ignore[operator] # noqa: E731
        trace = minimise(noisy, [w], data=line(), steps=30, batch_size=16, seed=seed)
        return w.detach(), trace.losses

    state = torch.get_rng_state()
    (a, losses), _ = run(0), torch.rand(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    b, again = run(0)
    assert torch.equal(a, b)
    assert losses == again
    assert not torch.equal(a, run(1)[0])


def test_no_data_and_samplers() -> None:
    w = torch.tensor([3.0], requires_grad=True)
    minimise(lambda: w.square().sum(), [w], steps=300, lr=0.1)
    assert abs(float(w.detach())) < 1e-2
    steps: list[int] = []
    v = torch.tensor([0.0], requires_grad=True)

    def sampler(step: int) -> Tensor:
        steps.append(step)
        return torch.randn(8) + 4

    minimise(lambda batch: (v - batch).square().mean(), [v], data=sampler, steps=5)
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(bad: float) -> None:
    w = torch.tensor([1.0], requires_grad=True)
    count = [0]

    def loss() -> Tensor:
        count[0] += 1
        return w.sum() * (bad if count[0] == 4 else 1.0)

    with pytest.raises(ValueError, match=r"the loss became (nan|inf) at step 3: lower lr"):
        minimise(loss, [w], steps=10)
    assert count[0] == 4


def test_the_best_parameters_are_kept() -> None:
    w = torch.tensor([5.0], requires_grad=True)
    trace = minimise(
        lambda: w.sum(), [w], steps=1000, lr=1.0, validate=lambda: float((w - 1).square()), validate_every=1, patience=3
    )  # runs downhill through w = 1
    assert float(w.detach()) == pytest.approx(1, abs=0.01)
    assert trace.stopped == "no improvement in 3 validations"
    assert trace.steps == 7
    assert trace.best == min(value for _, value in trace.validations)
    assert [step for step, _ in trace.validations] == list(range(1, 8))


def test_validation_that_is_never_a_number_keeps_the_last_parameters() -> None:
    w = torch.tensor([5.0], requires_grad=True)
    trace = minimise(lambda: w.sum(), [w], steps=10, validate=lambda: math.nan, validate_every=1, patience=100)
    assert trace.best is None
    assert torch.isfinite(w).all()


def test_schedule_and_clipping() -> None:
    w = torch.tensor([0.0], requires_grad=True)
    asked: list[float] = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 0.0 if progress >= 0.5 else 1.0

    positions: list[float] = []
    minimise(lambda: w.sum(), [w], steps=10, lr=0.1, lr_schedule=schedule, progress=lambda step, loss: positions.append(loss))
    assert asked == pytest.approx([i / 10 for i in range(10)])
    assert float(w.detach()) == pytest.approx(-0.5, abs=1e-4)
    assert len(positions) == 10

    norms: list[float] = []
    v = torch.zeros(2, requires_grad=True)
    v.register_post_accumulate_grad_hook(lambda p: None)
    original = torch.nn.utils.clip_grad_norm_
    try:
        torch.nn.utils.clip_grad_norm_ = lambda p, c: norms.append(float(original(p, c))) or norms.append(float(p[0].grad.norm()))  # type: ignore
        minimise(lambda: 100 * v.sum(), [v], steps=1, clip=1.0)
    finally:
        torch.nn.utils.clip_grad_norm_ = original
    assert norms == pytest.approx([100 * math.sqrt(2), 1.0], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "either steps or epochs"),
        ({"steps": 1, "epochs": 1}, "either steps or epochs"),
        ({"epochs": 1}, "epochs need stored data"),
        ({"steps": 0}, "at least one step"),
        ({"steps": 1, "batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], sentence: str) -> None:
    w = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match=sentence):
        minimise(lambda: w.sum(), [w], **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="params is empty"):
        minimise(lambda: w.sum(), [], steps=1)


def test_under_no_grad() -> None:
    w = torch.tensor([3.0], requires_grad=True)
    with torch.no_grad():
        minimise(lambda: w.square().sum(), [w], steps=10, lr=0.1)
    assert float(w.detach()) < 3
