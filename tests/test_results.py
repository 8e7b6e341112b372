"""Results print themselves and survive JSON."""

from __future__ import annotations

import csv
import io
import json

import pytest

from expost.results import Curve, Result, Table, format_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (True, "yes"), (False, "no"), (7, "7"), ("name", "name"),
        (0.0, "0.000"), (1.0, "1.000"), (12.3456, "12.35"), (123.456, "123.5"), (-1234.56, "-1235"), (12345.6, "12346"),
        (0.5, "0.500"), (0.0123456, "0.0123"), (-0.00123456, "-0.00123"), (1.234e-5, "1.23e-05"), (1.234e7, "1.23e+07"),
        (float("nan"), "nan"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_format_number(value, text):
    assert format_number(value) == text


def test_result_prints_like_a_report():
    r = Result("NLL", 81.25, error=0.31, n=1000, unit="nats", notes=("a lower bound",), details={"K": 16.0})
    assert str(r) == "NLL = 81.25 ± 0.310 nats (n = 1000)\n  note: a lower bound"
    assert float(r) == 81.25
    assert str(Result("FD", 3.0)) == "FD = 3.000"
    back = json.loads(json.dumps(r.to_json()))
    assert Result(**{**back, "notes": tuple(back["notes"])}) == r
    with pytest.raises(AttributeError):
        r.value = 1.0


@pytest.fixture
def table() -> Table:
    t = Table(("model", "FD", "steps"), title="samples", notes=["small n"])
    t.add("vae", 12.5, 100)
    t.add("rae, l2", None, 2000)
    return t


def test_table_access(table):
    assert table.column("FD") == [12.5, None]
    assert table.cell("rae, l2", "steps") == 2000
    with pytest.raises(KeyError):
        table.cell("wae", "FD")
    with pytest.raises(ValueError, match="2 cells does not fit 3 columns"):
        table.add("x", 1)


def test_table_prints_aligned(table):
    lines = str(table).split("\n")
    assert lines == [
        "samples",
        "model       FD  steps",
        "-------  -----  -----",
        "vae      12.50    100",
        "rae, l2      -   2000",
        "note: small n",
    ]
    assert str(Table(("a", "b"))) == "a  b\n-  -"


def test_table_formats(table):
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [["model", "FD", "steps"], ["vae", "12.5", "100"], ["rae, l2", "", "2000"]]
    assert table.to_markdown().split("\n")[:3] == ["| model | FD | steps |", "|---|---|---|", "| vae | 12.50 | 100 |"]
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_curve():
    assert Curve([1.0], [2.0], "step", "loss").to_json() == {"x": [1.0], "y": [2.0], "x_label": "step", "y_label": "loss"}
