"""Every test starts from the same seed, and none may leave torch's global state changed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("EXPOST_QUIET", "1")  # a slow machine must not add lines to what is compared; tests of the lines take it away
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"needs the real data in {SHARED}"))


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data; mark such tests with ``@pytest.mark.shared``."""
    return SHARED


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - for the libraries that still use it
    random.seed(0)


def global_state() -> tuple[object, ...]:
    """What a library must leave alone."""
    return (
        torch.get_default_dtype(),
        torch.distributions.Distribution._validate_args,
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.is_grad_enabled(),
    )


@pytest.fixture(autouse=True)
def _global_state_unchanged() -> Iterator[None]:
    before = global_state()
    yield
    assert global_state() == before, "a test changed torch's global state"
