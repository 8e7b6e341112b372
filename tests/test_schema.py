"""Declared types are checked in one place: of settings and of files."""

import dataclasses
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from expost.cli import sentence
from expost.system.schema import Checked, Meta, convert, parse, printable


@dataclasses.dataclass(frozen=True)
class Settings(Checked):
    kind: Literal["adam", "adamw"] = "adam"
    rate: Annotated[float, Meta(gt=0)] = 1e-3
    limit: Annotated[int, Meta(ge=1)] | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    names: tuple[str, ...] = ()
    layers: tuple[type[nn.Module], ...] = (nn.Linear,)
    call: Callable[[int], int] | None = None
    inner: Checked | None = None


def test_what_loses_nothing_is_converted():
    made = Settings(rate=1, betas=[0, 1], names=["a"], call=len, inner=Settings())
    assert made.rate == 1.0
    assert isinstance(made.rate, float)
    assert made.betas == (0.0, 1.0)
    assert made.names == ("a",)
    assert dataclasses.replace(made, limit=3).limit == 3
    made = Settings(rate=np.float64(0.5), limit=np.int64(3), betas=(np.float32(0.5), np.int8(1)))
    assert (made.rate, made.limit, made.betas) == (0.5, 3, (0.5, 1.0))
    assert {type(made.rate), type(made.limit), *map(type, made.betas)} == {float, int}, "Python's own, as names and files have them"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("kind", "sgd", 'kind must be adam or adamw, not "sgd"'),
        ("kind", "Adam", "adam or adamw"),
        ("rate", -1, "rate must be a number above 0, not -1"),
        ("rate", "1", "a number above 0"),
        ("rate", True, "a number above 0"),
        ("rate", float("nan"), "a number above 0, not nan"),
        ("rate", float("inf"), "a number above 0, not inf"),
        ("rate", 10**400, "a number above 0"),
        ("rate", torch.tensor(1.0), "a number above 0"),
        ("limit", 0, "limit must be a whole number of at least 1 or none, not 0"),
        ("limit", 2.5, "a whole number"),
        ("limit", np.float64(2), "a whole number"),
        ("limit", np.int64(0), "of at least 1"),
        ("rate", np.float32("nan"), "above 0, not nan"),
        ("limit", True, "a whole number"),
        ("betas", (1, 2, 3), "betas must be 2 values"),
        ("betas", ("a", 2), "2 values"),
        ("names", "gmm:3", "names must be a list, each text"),
        ("layers", (3,), "layers must be a list"),
        ("call", 3, "call must be a function or none"),
        ("inner", "cosine", "inner must be of type Checked"),
        ("inner", {}, "inner must be of type Checked"),
    ],
)
def test_what_differs_is_named_with_what_it_may_be(field: str, value: Any, says: str):
    with pytest.raises(ValueError) as error:
        Settings(**{field: value})
    assert says in str(error.value)
    with pytest.raises(ValueError):
        dataclasses.replace(Settings(), **{field: value})


@dataclasses.dataclass
class Description:
    seed: Annotated[int, Meta(ge=0)]
    shape: list[Annotated[int, Meta(ge=1)]]
    rest: Any = None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "it is no run (input data was truncated)"),
        (b"[", "expected object, got array"),
        (b"\xff", "malformed"),
        (b'{"shape": [1]}', "seed"),
        (b'{"seed": 1.5, "shape": [1]}', "seed: expected int, got float"),
        (b'{"seed": -1, "shape": [1]}', "seed: expected int >= 0"),
        (b'{"seed": 1, "shape": [1, 0]}', "shape[1]: expected int >= 1"),
        (b'{"seed": 1, "shape": [1], "rest": ' + b"[" * 9000 + b"]" * 9000 + b"}", "nested too deeply"),
    ],
)
def test_a_file_that_differs_is_one_sentence(text: bytes, says: str):
    with pytest.raises(ValueError) as error:
        parse(text, Description, "it is no run")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_files_of_newer_versions_may_hold_more():
    assert parse('{"seed": 1, "shape": [2], "new": 1}', Description, "x").shape == [2]
    assert convert({"seed": 1, "shape": [2], "rest": {"a": 1}}, Description, "x").rest == {"a": 1}


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b]0;title\x07",
        "\x1b[2J",
        "\x9b31m",
        "a\nb\rc\td\x0b",
        "\u2028\u2029\x85",
        "\u202eabc\u2066",
        "\u200b\u200d\ufeff\xad",
        "\u3164\u034f",
        "\x7f\x00",
        "\udc80",
        "\U000e0041",
    ],
)
def test_text_of_files_cannot_steer_a_terminal(hostile: str):
    shown = printable(f"<{hostile}>")
    assert shown.startswith("<")
    assert shown.endswith(">")
    assert "\\" in shown
    assert all(c.isprintable() for c in shown)
    shown.encode()
    assert not set(shown[1:-1]) & set("\u034f\u3164")
    with pytest.raises(ValueError) as error:
        Settings(kind=hostile)
    assert str(error.value).isprintable()
    with pytest.raises(ValueError) as error:
        parse(json.dumps({"kind": hostile}), Settings, "it")
    assert str(error.value).isprintable()
    assert sentence(ValueError(hostile)).isprintable()


def test_text_of_files_is_shown_as_it_is_and_not_at_length():
    assert printable("Größe 3 µm, 猫 → é") == "Größe 3 µm, 猫 → é"
    assert len(printable("x" * 10**7)) < 160
    assert len(printable("\x1b" * 10**7)) < 600
