"""Importing expost changes no global state of torch, loads nothing heavy, and nothing in it unpickles."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FORBIDDEN = ("torchvision", "torch_fidelity", "cleanfid", "pytorch_fid", "piq", "lpips", "timm")
OPTIONAL = ("datasets", "PIL", "pyarrow", "sklearn", "scipy", "zuko", "matplotlib", "rich", "accelerate", "tyro", "jinja2")


def modules() -> list[str]:
    """Every module of the package by name."""
    found = []
    for path in sorted((SOURCE / "expost").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] != "__main__":
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


STATE = """
import torch, json, sys, os
def state():
    return {
        "dtype": str(torch.get_default_dtype()), "validation": torch.distributions.Distribution._validate_args,
        "threads": torch.get_num_threads(), "interop": torch.get_num_interop_threads(), "random": torch.get_rng_state().tolist(),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "grad": torch.is_grad_enabled(),
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32],
        "matmul": torch.get_float32_matmul_precision(), "warnings": __import__("warnings").filters[:],
        "excepthook": sys.excepthook is sys.__excepthook__, "environment": dict(os.environ),
    }
"""


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().split("\n")[-1]


def test_importing_every_module_changes_nothing_in_torch_and_loads_nothing_optional():
    """One interpreter imports the modules one after the other and names the first that changes something."""
    code = f"""{STATE}
import importlib, warnings
before, found = state(), []
for name in sorted({modules()!r}, key=lambda name: name.startswith("expost.cli")):  # the command line last: it may load its own parser
    importlib.import_module(name)
    after = state()
    found += [f"{{name}} changes {{key}}" for key in before if before[key] != after[key]]
    if not name.startswith("expost.cli"):
        found += [f"{{name}} loads {{other}}" for other in {OPTIONAL!r} if other in sys.modules]
    if found:
        break
print(json.dumps(found))
"""
    assert json.loads(fresh(code)) == []


def test_using_a_flow_changes_nothing_either():
    """Importing zuko switches off torch's argument validation for everybody: expost restores it."""
    code = f"""{STATE}
before = state()
from expost.density import Flow
torch.manual_seed(0)
before["random"] = torch.get_rng_state().tolist()
flow = Flow(2)
after = state()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""
    assert json.loads(fresh(code)) == []


def test_the_package_itself_loads_neither_torch_nor_anything_else():
    code = f"""
import sys, json
import expost
assert "GMM" in dir(expost) and expost.__version__
print(json.dumps([name for name in ("torch", "numpy", *{OPTIONAL!r}) if name in sys.modules]))
"""
    assert json.loads(fresh(code)) == []


def test_every_public_name_resolves():
    import expost

    for name in expost.__all__:
        assert getattr(expost, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = expost.Nothing


@pytest.mark.parametrize("name", FORBIDDEN)
def test_not_installed(name):
    """Published networks come with these; a torchvision that merely lies in the environment breaks other packages' import."""
    assert importlib.util.find_spec(name) is None


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_unpickles(path):
    text = path.read_text(encoding="utf-8")
    for pattern in (
        r"\bpickle\b",
        r"torch\.load\((?![^()]*weights_only=True\))",
        r"torch\.save\(",
        r"allow_pickle\s*=\s*True",
        r"\bjoblib\b",
        r"\bdill\b",
        r"\bshelve\b",
    ):
        hit = re.search(pattern, text)
        assert hit is None or _in_prose(text, hit.start()), f"{path}: {hit.group()}"


def _in_prose(text: str, position: int) -> bool:
    """Whether the position lies in a comment or a string (a docstring may say that nothing is pickled)."""
    import io
    import tokenize

    lines = text.split("\n")
    row = text.count("\n", 0, position) + 1
    column = position - sum(len(line) + 1 for line in lines[: row - 1])
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT) and token.start <= (row, column) < token.end:
            return True
    return False
