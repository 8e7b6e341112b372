"""What a project that people join has: types in the wheel, hooks that are the gates, CI on the Python versions that are promised, a citation."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import pathspec
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
