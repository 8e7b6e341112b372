"""The rules of the house, from the sources alone: rooms, sizes, budgets, circles of imports, who names whom. Exit status 1 if one is broken; part of `make check`.

    python benchmarks/house.py          statements per room beside their budgets, and what is broken
    python benchmarks/house.py --fix    write today's statements into pyproject.toml: growth is argued in the commit

A statement is an ``ast.stmt`` that is no docstring, so the figures do not depend on the width of lines. A budget is failed at +5 %.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from expost.system.storage import Sources

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "expost"
SLACK, MOST_FILES = 1.05, 12


def statements(tree: ast.Module) -> int:
    """Statements without docstrings."""
    every = sum(isinstance(node, ast.stmt) for node in ast.walk(tree))
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return every - sum(isinstance(node, holders) and ast.get_docstring(node, clean=False) is not None for node in ast.walk(tree))


def rooms() -> dict[str, int]:
    """Statements of each top-level folder; the files of the root are the room ``expost``; ``tests`` is beside them."""
    found: Counter[str] = Counter()
    for file in SOURCE.rglob("*.py"):
        inside = file.relative_to(SOURCE).parts
        found[inside[0] if len(inside) > 1 else "expost"] += statements(ast.parse(file.read_text(encoding="utf-8")))
    found["tests"] = sum(statements(ast.parse(file.read_text(encoding="utf-8"))) for file in (ROOT / "tests").rglob("*.py"))
    return dict(sorted(found.items()))


def circles() -> list[list[str]]:
    """Modules that import each other, directly or through others; imports inside functions count, those for type checkers do not."""
    sources = Sources(SOURCE)
    names = [".".join((SOURCE.name, *f.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__") for f in SOURCE.rglob("*.py")]
    graph = {name: sources.imported(name) - {name} for name in names}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [error.args[1]]
    return []


def budgets() -> dict[str, int]:
    """What pyproject.toml allows."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["house"]["budgets"]


def broken() -> Iterator[str]:
    """A sentence for every rule that is broken."""
    allowed = budgets()
    for room, count in rooms().items():
        most = allowed.get(room, 0)
        if count > SLACK * most:
            yield f"{room} has {count} statements, its budget is {most}: take something out, or argue the growth in the commit (--fix)"
    for circle in circles():
        yield f"{' -> '.join(circle)} import each other: what they share wants a module below them"
    papers = {folder.name for folder in (SOURCE / "papers").iterdir() if (folder / "paper.py").is_file()}
    for folder in [SOURCE, *(p for p in SOURCE.rglob("*") if p.is_dir() and p.name != "__pycache__")]:
        files = [file for file in folder.glob("*.py") if not file.name.startswith("__")]
        if len(files) > MOST_FILES:
            yield f"{folder.relative_to(SOURCE)} has {len(files)} files, more than {MOST_FILES}: it wants rooms of its own"
    for file in sorted(SOURCE.rglob("*.py")):
        text, inside = file.read_text(encoding="utf-8"), file.relative_to(SOURCE).parts
        imported = set(re.findall(r"expost\.papers\.(\w+)", text))
        if inside[0] not in ("papers", "cli") and re.search(r"^\s*(from|import) expost\.papers\b", text, re.M):
            yield f"{'/'.join(inside)} imports papers, which are a leaf"
        if inside[0] == "papers" and len(inside) > 2 and (others := imported & papers - {inside[1]}):
            yield f"{'/'.join(inside)} imports another paper: {', '.join(sorted(others))}"
        if inside[0] != "fast" and re.search(r"torch\._C\b|torch\.ops\.(mkldnn|aten)|torch\._ops|mallopt", text):
            yield f"{'/'.join(inside)} uses private names of torch or the allocator's, which belong to fast/"


def main() -> int:
    found = rooms()
    if "--fix" in sys.argv:
        file = ROOT / "pyproject.toml"
        table = "[tool.house.budgets]\n" + "".join(f"{room} = {count}\n" for room, count in found.items())
        text = re.sub(r"\n*\[tool\.house\.budgets\]\n(\w+ = \d+\n)*", "", file.read_text(encoding="utf-8"))
        file.write_text(f"{text.rstrip()}\n\n{table}", encoding="utf-8")
    allowed = budgets()
    for room, count in found.items():
        print(f"{room:<14}{count:>7} of {allowed.get(room, 0)}")
    print(f"{'source':<14}{sum(found.values()) - found['tests']:>7}")
    wrong = list(broken())
    print("\n".join(wrong) or "the rules of the house hold")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
