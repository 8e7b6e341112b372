"""Options that several commands share: ranges; dataclasses to inherit from, whose fields the command line shows among a command's own.

And the other way round: sentences of the Python API in the words of a command's options (:func:`as_options`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import UseAppendAction, arg

from expost.system.schema import Count, Meta

__all__ = [
    "Count",
    "DataOptions",
    "ImageOptions",
    "Images",
    "OpensModel",
    "SomeImages",
    "OpensRun",
    "Positive",
    "as_options",
    "check_file",
    "check_report",
    "check_suffix",
]

#: Ranges of options, which :func:`expost.system.schema.check_fields` checks before a command runs.
#: ``-n`` beside ``--n``: torchrun takes ``--n`` for an abbreviation of its own options, wherever it stands.
Images = Annotated[Count, arg(aliases=["-n"])]
SomeImages = Annotated[Count | None, arg(aliases=["-n"])]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(gt=0, lt=1)]

#: ``name=value`` of a Python sentence; what follows an option already is left alone.
_KEYWORD = re.compile(r"(--[\w-]+ )?(?<![\w./'-])([a-z_]+(?:\.[a-z_]+)*)=(\.\.\.|\"[^\"]*\"|'[^']*'|\([^()]*\)|-?\w+(?:[.+-]\w+)*)")
#: Parameters of the library that a command calls otherwise.
_CALLED = {"data_name": "data", "input_range": "range"}
#: What is done in Python, and instead of it where a command has the option (None: any command).
_CALLS = (
    (re.compile(r"model\.with_prior\(.*\)"), "--density gmm:10", "density"),
    (
        re.compile(r"train with heads\.Bernoulli\(\) on binary or heads\.LogisticMixture\(\) on 8-bit images"),
        "train yu2020/bits-back-binary on binary or yu2020/bits-back on 8-bit images",
        None,
    ),
    (
        re.compile(r"(use \w+\(\.\.\.\)( or \w+\(\.\.\.\))?, or )?give (it|the encoder) a (Diagonal\(\) or )?Constant\(scale\)"
                   r"( or Diagonal\(\))? head( instead of Dirac\(\)|, or pass .*\))?"),
        "train a recipe whose encoder draws codes, e.g. kingma2014/vae",
        None,
    ),
)  # fmt: skip
#: What ``--set`` takes, by the first part of its name.
_SETTINGS = {"network", "latent", "objective", "training", "densities", "stage", "stage_width"}


def check_report(folder: Path) -> None:
    """Before the work: a report has a folder of its own."""
    from expost.system.state import check_folder

    check_folder(folder, "report.html", what="report")


def check_file(path: Path | None, *suffixes: str) -> None:
    """Before the work: a file that can be written, with a name that says what it is."""
    from expost.system.files import check_output

    if path is None:
        return
    check_output(path)
    check_suffix(path, *suffixes)


def check_suffix(path: Path, *suffixes: str) -> None:
    """A name says what a file is, or nothing."""
    if path.suffix and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} would be {' or '.join(suffixes)} under another name: call it {path.with_suffix(suffixes[0])}")


@dataclass(kw_only=True)
class ImageOptions:
    """What images become when they are read."""

    size: Count | None = None
    """resize images to so many pixels a side; those that are not square are cropped to their central square first"""
    crop: Count | None = None
    """cut the central square of so many pixels a side out of every image, before resizing"""
    pad_to: Count | None = None
    """put a border of zeros around images, up to so many pixels a side"""

    def loading(self) -> dict[str, Any]:
        """The options that were given, as keywords of :func:`expost.data.load`."""
        given = {name: getattr(self, name, None) for name in ("size", "crop", "pad_to", "val")}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(kw_only=True)
class DataOptions(ImageOptions):
    """How data are loaded; a trained run's are loaded as they were for its training unless something else is given."""

    val: Count | Share | None = None
    """hold so many training examples, or this share of them, out for validation; default: the data set's own part, or a tenth"""


@dataclass(kw_only=True)
class OpensModel:
    """A command that opens a run folder: nothing that the folder names is imported or called without the user's word."""

    code: Annotated[UseAppendAction[list[str]], arg(metavar="MODULE:FUNCTION")] = field(default_factory=list)
    """code that the folder of a wrapped model names and that may be run, package.module:function; may be repeated (see docs/security.md)"""


@dataclass(kw_only=True)
class OpensRun(OpensModel, DataOptions):
    """A command that opens a run folder and loads its data."""


def as_options(text: str, command: Any) -> str:
    """A sentence of the Python API in the words of a command: ``name=value`` is an option where the command has one of that name.

    The library names what to change as a keyword of Python (``pad_to=32``, ``network=mlp``), which is right for both kinds of reader, or
    as a call where there is no keyword (:data:`_CALLS`); what stands in backticks is a command line already.

    Args:
        command: a dataclass whose fields are the options, or an instance.

    >>> as_options("pad the images (pad_to=32) or say val=0.2", DataOptions)
    'pad the images (--pad-to 32) or say --val 0.2'
    """
    names = {f.name for f in fields(command)}

    def option(found: re.Match[str]) -> str:
        before, name, value = found.groups()
        name, value = _CALLED.get(name, name), value.strip("\"'").strip("()").replace(", ", ",")
        if before:
            return found[0]
        if name in names:
            flag = f"--{name.replace('_', '-')}"
            return flag if value == "True" else f"{flag}{'=' if value.startswith('-') else ' '}{value}"
        return f"--set {name}={value}" if "set" in names and name.partition(".")[0] in _SETTINGS else found[0]

    def words(part: str) -> str:
        for call, instead, needed in _CALLS:
            part = call.sub(instead, part) if needed is None or needed in names else part
        part = _KEYWORD.sub(option, part)
        if "range" in names:
            part = re.sub(r"a range of \((-?[\d.]+), (-?[\d.]+)\)", r"--range=\1,\2", part)
        return re.sub(
            r"(?<![\w./-])([a-z]+(?:_[a-z]+)+)(?![\w.=(])", lambda m: f"--{m[1].replace('_', '-')}" if m[1] in names else m[1], part
        )

    return "`".join(part if i % 2 else words(part) for i, part in enumerate(text.split("`")))
