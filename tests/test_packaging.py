"""What a project that people join has: types in the wheel, hooks that are the gates, CI on the Python versions that are promised, a citation."""

from __future__ import annotations

import re
import runpy
import shutil
import tomllib
from importlib import resources
from pathlib import Path

import pathspec
import pytest
import yaml

import expost

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))


def test_the_wheel_promises_types() -> None:
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]
    assert resources.files("expost").joinpath("py.typed").is_file()
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/expost"]}  # all files of the package, but those that git ignores
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".gitignore").read_text(encoding="utf-8").splitlines())
    assert not ignored.match_file("src/expost/py.typed")


def test_hooks_are_the_gates_of_make_check() -> None:
    gates = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert gates is not None
    commands = [line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in gates[1].splitlines() if "$(BIN)/" in line]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in local["hooks"]]
    assert local["repo"] == "local"
    assert hooks == commands


def test_continuous_integration_runs_make_test_on_every_promised_python() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    assert any(step.get("run", "").startswith("make test") for step in job["steps"])


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == expost.__version__ == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["project"]["authors"]]


def test_rules_of_the_house_are_noticed_when_they_are_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    house = runpy.run_path(str(ROOT / "benchmarks" / "house.py"))
    assert list(house["broken"]()) == []
    copy = tmp_path / "expost"
    shutil.copytree(ROOT / "src" / "expost", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "heads.py").write_text("from expost.papers.yu2020 import nets\nimport torch._C\n" + "x = 1\n" * 9999)
    (copy / "seeds.py").write_text("def f():\n    from expost.tensors import unit\n")
    (copy / "tensors.py").write_text("from expost.seeds import f\n")
    (copy / "papers" / "yu2020" / "nets.py").write_text("from expost.papers.dai2019 import nets\n")
    for i in range(13):
        (copy / "nets" / f"more{i}.py").write_text("")
    monkeypatch.setitem(house["broken"].__globals__, "SOURCE", copy)
    said = "\n".join(house["broken"]())
    for part in (
        "expost has 1",
        "heads.py imports papers",
        "papers/yu2020/nets.py imports another paper: dai2019",
        "heads.py uses private names",
        "nets has 17 files",
        "import each other",
    ):
        assert part in said
