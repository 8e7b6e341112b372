"""What is remembered does not outlive the code that made it, wherever that code lies."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import expost
from expost.system import storage
from expost.system.storage import Sources, Tensors, remember

PACKAGE = Path(expost.__file__).parent
#: What is kept -> the module that makes it.
MAKERS = {
    "controls": "evaluate.protocol",
    "features": "evaluate.features.base",
    "neighbours": "evaluate.metrics.suite",
    "moments": "evaluate.comparison",
    "scores": "runs.lab",
    "grid likelihood": "papers.yu2020.plane",
    "compression": "papers.yu2020.lossless",
    "class radius": "papers.manoj2018.spaces",
}
SCORED, LAB = {"controls", "scores"}, {"scores", "grid likelihood", "compression", "class radius"}
#: A module that is broken -> what of this must be measured again, at least; and what must not.
BROKEN = {
    "diagnose.classes.bounds": ({"class radius"}, {"controls", "features"}),
    "diagnose.classes.masses": ({"class radius"}, {"controls", "features"}),
    "diagnose.optimal": (set(), {"controls", "features"}),
    "posterior.kernel": (set(), {"controls", "features", "compression"}),
    "evaluate.protocol": (SCORED, {"features", "neighbours"}),
    "evaluate.metrics.frechet": (SCORED, {"features"}),
    "evaluate.features.networks": ({"features", "moments", *SCORED}, set()),
    "statistics.neighbours": ({"neighbours", *SCORED}, set()),
    "codec.stack": ({"compression"}, {"controls", "features"}),
    "density.mixture": ({"scores", "compression"}, {"features"}),
    "objectives.elbo": (LAB, {"features"}),
    "papers.yu2020.plane_maps": ({"grid likelihood"}, {"controls", "features"}),
    "seeds": (set(MAKERS) - {"features", "neighbours"}, set()),
    "density.kde": ({"scores", "compression"}, {"features"}),
    "density.flow": ({"scores", "compression"}, {"features"}),
    "papers.ghosh2020.mean_stage": ({"scores"}, {"controls"}),
    "papers.yu2020.squeezed": (LAB, {"controls"}),
    "papers.ghosh2020.nets": ({"scores"}, {"controls"}),
    "autoencoder": (LAB | {"controls"}, {"neighbours"}),
}


def hashes(root: Path) -> dict[str, str]:
    sources = Sources(root)
    return {what: sources.hash([f"expost.{module}"]) for what, module in MAKERS.items()}


def change(file: Path, how: str) -> None:
    """Break a module: a number in it becomes another; or only what is said about it changes."""
    text = file.read_text()
    if how == "code":
        tree = ast.parse(text)
        numbers = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and type(n.value) in (int, float)]
        numbers[0].value += 1
        file.write_text(ast.unparse(tree))
    else:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
                node.body[0] = ast.Expr(ast.Constant("Another sentence."))
        file.write_text("# a comment\n" + ast.unparse(tree))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy") / "expost"
    shutil.copytree(PACKAGE, root, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_whoever_breaks_a_module_measures_again(copied: Path) -> None:
    before = hashes(copied)
    for module, (again, kept) in BROKEN.items():
        file = copied / f"{module.replace('.', '/')}.py"
        whole = file.read_text()
        change(file, "comment")
        assert hashes(copied) == before, module
        change(file, "code")
        now = hashes(copied)
        changed = {what for what in MAKERS if now[what] != before[what]}
        assert again <= changed, module
        assert not kept & changed, module
        file.write_text(whole)
    assert hashes(copied) == before


def test_imports_are_followed_inside_functions_and_through_packages(tmp_path: Path) -> None:
    root = tmp_path / "pack"
    (root / "inner").mkdir(parents=True)
    (root / "cli").mkdir()
    for name, text in {
        "__init__.py": "",
        "a.py": "def f():\n    from pack.inner import thing, sub\n    from pack import cli\n    import pack.cli.b\n",
        "inner/__init__.py": "from pack.inner.one import thing\nfrom pack.inner.two import other\n",
        "inner/one.py": "thing = 1\n",
        "inner/two.py": "other = 1\n",
        "inner/sub.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack import typed\n",
        "typed.py": "",
        "cli/__init__.py": "",
        "cli/b.py": "",
    }.items():
        (root / name).write_text(text)
    assert set(Sources(root).reached(["pack.a"])) == {"pack.a", "pack.inner.one", "pack.inner.sub"}


SCRIPT = """
import sys
from pathlib import Path
from expost.papers.base import claims_of
from expost.runs.lab import Lab
from expost.papers.yu2020.plane import likelihoods
for _ in range(int(sys.argv[2])):
    lab = Lab("digits", "smoke", Path(sys.argv[1]), say=lambda text: print("said", text))
    print("entropy", likelihoods(lab, "yu2020/vae", "2spirals").entropy)
print("E13", claims_of("E13")[0].measure(lab).holds)
print("other code", len(lab.trained_by_other_code()))
"""


def test_a_broken_module_is_noticed_in_a_lab_that_was_filled_before(copied: Path, tmp_path: Path) -> None:
    def run(times: int) -> str:
        found = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "lab"), str(times)],
            env={**os.environ, "PYTHONPATH": str(copied.parent), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    first = run(2)
    assert [first.count(what) for what in ("said grid likelihood", "entropy", "E13 True", "other code 0")] == [1, 2, 1, 1]

    points, plane, train = (
        copied / "papers/yu2020/demonstrations/points.py",
        copied / "papers/yu2020/plane_maps.py",
        copied / "train/fit.py",
    )
    whole = {file: file.read_text() for file in (points, plane, train)}
    points.write_text(whole[points].replace("holds=", "holds=False and ", 1))
    wrong = "\n_right = grid_likelihood\ndef grid_likelihood(*a, **k):\n    g = _right(*a, **k)\n    return type(g)(g.name, g.nodes, 7.0, g.nll)\n"
    plane.write_text(whole[plane] + wrong)
    train.write_text(whole[train] + "\nBROKEN = True\n")
    broken = run(1)
    assert [broken.count(what) for what in ("said grid likelihood", "entropy 7.0", "E13 False", "other code 1", "training")] == [
        1,
        1,
        1,
        1,
        0,
    ]
    for file, text in whole.items():
        file.write_text(text)


def made(value: object, folder: Path, *key: object, kind: object = dict, **how: object) -> tuple[object, bool]:
    asked = []
    found = remember(folder, "thing", lambda: asked.append(1) or value, *key, kind=kind, **how)  # type: ignore[arg-type]
    return found, bool(asked)


def test_values_are_kept_by_key_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made({"a": 1}, tmp_path, "k") == ({"a": 1}, True)
    assert made({"a": 2}, tmp_path, "k") == ({"a": 1}, False)
    assert made({"a": 2}, tmp_path, "other") == ({"a": 2}, True)
    assert made({"a": 3}, tmp_path, "k", enough=lambda found: found["a"] > 1) == ({"a": 3}, True)
    assert made({"a": 4}, tmp_path, "k") == ({"a": 3}, False)
    assert made({"a": "x"}, tmp_path, "k", kind=dict[str, str]) == ({"a": "x"}, True), "of another type than declared"
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(storage, "code_hash", lambda *modules: "0" * 16)
    assert made({"a": 4}, tmp_path, "k") == ({"a": 4}, True)
    assert len(list(tmp_path.iterdir())) == 2, "what other code made is removed"


def test_what_is_damaged_is_made_again(tmp_path: Path) -> None:
    made({"a": 1}, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", b"[]", whole[:30], whole.replace(b"1", b"2", 1), whole.replace(b"checksum", b"chexksum")):
        file.write_bytes(damaged)
        assert made({"a": 1}, tmp_path) == ({"a": 1}, True)
        assert file.read_bytes() == whole


def test_tensors_are_kept_bit_by_bit(tmp_path: Path) -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    kept, asked = made({"x": x}, tmp_path, kind=Tensors)
    assert asked
    kept, asked = made({"x": x + 1}, tmp_path, kind=Tensors)
    assert not asked
    assert torch.equal(kept["x"], x)  # type: ignore[index]


def test_a_given_class_counts_with_its_code(tmp_path: Path) -> None:
    def place(*code: object) -> str:
        made({}, tmp_path / str(len(list(tmp_path.iterdir()))), code=code)
        return next(max(tmp_path.iterdir(), key=lambda p: int(p.name)).iterdir()).name

    features, linear = (importlib.import_module(f"expost.{name}") for name in ("evaluate.features.base", "diagnose.codes.linear"))
    assert len({place(), place(features.Pixels), place(linear.LinearUnits)}) == 3
