"""Shapes and units."""

from __future__ import annotations

import pytest
import torch

from expost.tensors import batches, check_finite, fold, sum_event, unit


def test_unit_scales_bytes_and_leaves_floats():
    assert torch.equal(unit(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0.0, 0.2, 1.0]))
    stored = torch.tensor([0, 255], dtype=torch.uint8)
    unit(stored)
    assert stored.tolist() == [0, 255], "the stored data must not change"
    x = torch.tensor([-3.0, 7.0], dtype=torch.float64)
    assert unit(x) is x


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_unit_refuses_other_integers(dtype):
    with pytest.raises(TypeError, match=r"convert it with"):
        unit(torch.zeros(2, dtype=dtype))


def test_sum_event():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert sum_event(x, 0) is x
    assert torch.equal(sum_event(x, 1), x.sum(2))
    assert torch.equal(sum_event(x, 2), x.sum((1, 2)))
    assert sum_event(x, 3).item() == x.sum().item()


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,), (4, 0)])
def test_fold_round_trip(batch):
    x = torch.randn(*batch, 2, 3)
    flat, shape = fold(x, 2)
    assert shape == torch.Size(batch)
    assert flat.dim() == 3
    assert torch.equal(flat.reshape(*shape, 2, 3), x)


def test_batches_cover_everything_in_order():
    x = torch.arange(10)
    parts = list(batches(x, 4))
    assert [len(p) for p in parts] == [4, 4, 2]
    assert torch.equal(torch.cat(parts), x)
    with pytest.raises(ValueError, match="at least 1"):
        next(batches(x, 0))


def test_check_finite_names_the_row():
    x = torch.zeros(4, 2, 2)
    check_finite(x, "codes")
    check_finite(torch.zeros(3, dtype=torch.uint8), "codes")
    x[2, 1, 0] = float("nan")
    x[3, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"codes hold NaN or infinity in 2 of 4 rows \(first: row 2\)"):
        check_finite(x, "codes")
    with pytest.raises(ValueError, match="in 1 of 2 rows"):
        check_finite(torch.tensor([0.0, float("inf")]), "values")
