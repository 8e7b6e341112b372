"""Parts of a data set by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from expost import data
from expost.data.base import Dataset, Split
from expost.data.splits import separate, subset


def test_without_keeps_the_test_split_whole() -> None:
    whole, part = data.load("digits"), data.load("digits:without=9")
    assert whole.train.labels is not None
    assert part.train.labels is not None
    assert 9 not in part.train.labels
    assert part.val.labels is not None
    assert 9 not in part.val.labels
    assert torch.equal(part.test.x, whole.test.x)
    assert torch.equal(part.train.x, whole.train.x[whole.train.labels != 9])
    assert part.name == "digits-without-9"
    assert part.hash != whole.hash
    assert part.classes == 10  # the test split has them all
    assert any("without class 9" in note for note in part.notes)


def test_only_reduces_every_split() -> None:
    part = data.load("digits:only=3,5")
    for split in (part.train, part.val, part.test):
        assert split.labels is not None
        assert set(split.labels.tolist()) == {3, 5}


def test_per_class_counts_and_is_a_function_of_the_seed() -> None:
    part, again, other = (data.load("digits:per-class=4", seed=seed) for seed in (0, 0, 1))
    assert part.train.labels is not None
    assert part.train.labels.bincount().tolist() == [4] * 10
    assert part.hash == again.hash != other.hash
    assert len(part.test) == len(data.load("digits").test)


def test_parts_can_be_joined() -> None:
    part = data.load("digits:only=0,1,2:per-class=5")
    assert len(part.train) == 15
    assert separate("/a/b:c/mnist:without=9") == ("/a/b:c/mnist", [("without", "9")])


def test_a_file_whose_name_looks_like_a_part_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x:without=9").mkdir()
    np.savez(tmp_path / "x:without=9" / "a.npz", x=np.random.default_rng(0).random((40, 3)).astype(np.float32))
    assert separate(str(tmp_path / "x:without=9"))[1] == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("digits:without=10", "no class 10"),
        ("digits:without=a", "cannot read"),
        ("digits:only=" + ",".join(map(str, range(10))) + ":without=0,1,2,3,4,5,6,7,8,9", "nothing would be left"),
        ("digits:per-class=500", "has only"),
        ("digits:per-class=0", "at least 1"),
        ("2spirals:without=1:per-class=x", "cannot read"),
    ],
)
def test_bad_parts_are_named(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        data.load(name)


def test_data_without_labels_has_no_parts() -> None:
    x = torch.rand(10, 2)
    dataset = Dataset.of("points", Split(x), Split(x), Split(x))
    with pytest.raises(ValueError, match="no labels"):
        subset(dataset, "without", "1")
