"""The README is executed: its Python block runs, its commands parse, its table is the one of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from expost import recipes
from expost.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    images = names["images"]
    assert tuple(images.shape) == (64, 1, 8, 8)  # type: ignore[attr-defined]
    assert len([line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 10


def test_every_command_of_the_readme_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    import tyro

    lines = re.findall(r"^    (expost .*?)(?:\s+#.*)?$", README, re.M)
    assert len(lines) >= 7
    for line in lines:
        arguments = shlex.split(line)[1:]
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments)
        assert type(command).__name__.lower() == arguments[0]


def test_the_table_is_the_one_of_the_code() -> None:
    assert recipes.__doc__ is not None
    rows = [line for line in recipes.__doc__.splitlines() if line.startswith("|")]
    assert "\n".join(rows) in README
    assert len(rows) == 2 + 17


def test_pictures_and_pages_exist() -> None:
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target
    for page in re.findall(r"`(docs/[a-z_]+\.md)`", README):
        assert (ROOT / page).is_file(), page
