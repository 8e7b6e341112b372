"""Randomness is a function of keys, and the global generators stay as they were."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from expost.seeds import generator, permutation, seed_from, seeded


def test_same_keys_same_numbers():
    def draw(*keys):
        with seeded(*keys):
            return torch.randn(5)

    assert torch.equal(draw("fit", 0, 3), draw("fit", 0, 3))
    assert not torch.equal(draw("fit", 0, 3), draw("fit", 0, 4))
    assert torch.equal(torch.randn(3, generator=generator("a", 1)), torch.randn(3, generator=generator("a", 1)))


def test_keys_are_told_apart():
    keys = [("a", 1), ("a", "1"), ("a1",), (1, "a"), ("a", 1, 0), ("a", 10), ("", "a", 1)]
    assert len({seed_from(*k) for k in keys}) == len(keys)
    assert all(0 <= seed_from(*k) < 2**63 for k in keys)


def test_seed_does_not_depend_on_the_process():
    code = "from expost.seeds import seed_from; print(seed_from('fit', 7))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == seed_from("fit", 7)


def test_global_state_is_restored_even_after_an_error():
    torch.randn(3)
    before = torch.get_rng_state()

    def fail() -> None:
        with seeded("x", 1):
            torch.randn(100)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
    with seeded("x", 1), seeded("y", 2):
        torch.rand(7)
    permutation(10, "p")
    generator("g").manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_nested_blocks_do_not_disturb_the_outer_one():
    with seeded("outer"):
        first, second = torch.randn(4), torch.randn(4)
    with seeded("outer"):
        again = torch.randn(4)
        with seeded("inner"):
            torch.randn(9)
        assert torch.equal(again, first)
        assert torch.equal(torch.randn(4), second)


def test_permutation():
    order = permutation(50, "order", 0, 1)
    assert torch.equal(order.sort().values, torch.arange(50))
    assert torch.equal(order, permutation(50, "order", 0, 1))
    assert not torch.equal(order, permutation(50, "order", 0, 2))
