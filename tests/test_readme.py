"""The README is executed: its Python block runs, its commands parse, its table is the one of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from expost import runs as recipes
from expost.cli.commands import COMMANDS
from test_docs import make

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_first_lines_do_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (promised,) = re.findall(r"```\n(\[.*?)```", README, re.S)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert tuple(names["images"].shape) == (64, 1, 8, 8)  # type: ignore[attr-defined]
    before, after = capsys.readouterr().out.splitlines()
    for line, said in zip((before, after), promised.splitlines(), strict=True):
        assert line.partition("]")[0] == said.partition("]")[0]  # the findings; figures depend on the processor
        assert abs(_accuracy(line) - _accuracy(said)) < 0.1
    assert _accuracy(before) > 0.7 > 0.6 > _accuracy(after)
    assert len([line for line in block.splitlines() if line.strip()]) <= 16
    assert len(README.splitlines()) <= 100


def _accuracy(line: str) -> float:
    (figure,) = re.findall(r"c2st = (\S+)", line)
    return float(figure)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_pages_runs(page: Path) -> None:
    """Every block that stands on its own (it imports what it uses, and is no interface with bodies left out)."""
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        if "data.load(" in block:
            exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_command_of_the_pages_is_understood(page: Path) -> None:
    import tyro

    for line in re.findall(r"^    (expost .*?)(?:\s+#.*)?$", page.read_text(encoding="utf-8"), re.M):
        arguments = shlex.split(line)[1:]
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments)
        assert type(command).__name__.lower() == arguments[0]


def test_all_commands_are_on_the_page_of_commands() -> None:
    named = re.findall(r"^    expost (\S+)", (ROOT / "docs/commands.md").read_text(encoding="utf-8"), re.M)
    assert set(named) == set(COMMANDS)


def test_the_table_is_the_one_of_the_code() -> None:
    assert recipes.__doc__ is not None
    rows = [line for line in recipes.__doc__.splitlines() if line.startswith("|")]
    assert "\n".join(rows) in README
    assert len(rows) == 2 + 17
    assert all(f"| {key} | {make.paper(key)} |" in README for key in (p.key for p in make.papers()))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "SECURITY.md", *PAGES], ids=lambda page: page.name)
def test_pictures_and_pages_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_pages_speak_the_language_of_the_field(page: Path) -> None:
    """Papers are named by their keys, not by numbers of ours, and claims by what they say; the log and the design are the developers' own."""
    if page.name in ("log.md", "architecture.md"):
        return
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<!\d )(?<![\d.,])00[0-4](?![\d.])", text), "papers are called by their keys"
    assert "facts sheet" not in text
    if page.name != "claims.md":  # which lists the ids that the command takes
        assert not re.findall(r"\b(?:A\d|B\d|C\d|D\d|E\d)\d?\b", text)
