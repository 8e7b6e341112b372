"""No file has anything executed: names in run folders, compressed files, model folders lead to no import and no call that the user did not name."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from expost.adapt import from_diffusers, wrap
from expost.cli import main
from expost.cli.commands import COMMANDS
from expost.cli.options import OpensModel
from expost.data import load
from expost.runs.lab import Lab
from expost.runs.run import load_model, load_run
from expost.system.files import load_tensors, save_tensors
from expost.train.folder import RunFolder
from expost.train.folder import _sum as checksum
from test_adapt import KL, pythae_folder

SOURCE = Path(importlib.import_module("expost").__file__ or "").parent
HELPER = """
import pathlib
from torch import nn

pathlib.Path("PWNED").touch()


def call(*arguments):
    pathlib.Path("PWNED").touch()
    return nn.Linear(64, 2), nn.Linear(2, 64)


def leave():
    raise SystemExit(0)


class Stop(BaseException):
    pass


def stop():
    raise Stop


def needs(config):
    return nn.Linear(64, config.latent_dim)
"""
INTERFACE = {"data_shape": [1, 8, 8], "latent_shape": [4], "posterior": "mean-logvar"}
LAUNCHER = "accelerate.commands.launch:simple_launcher"
LAUNCH = {"training_script": "/usr/bin/touch", "training_script_args": ["PWNED"], "no_python": True}
VAE = {"name": "VAEConfig", "latent_dim": 4, "input_dim": [1, 8, 8]}


def modules(reference: Any, **more: Any) -> dict[str, Any]:
    return {"recipe": "wrapped/modules", "settings": {"reference": reference, "interface": INTERFACE, **more}}


def pythae(**more: Any) -> dict[str, Any]:
    return {"recipe": "wrapped/pythae", "settings": {"config": {**VAE, **LAUNCH}, "interface": INTERFACE, **more}}


def diffusers(**more: Any) -> dict[str, Any]:
    return {"recipe": "wrapped/diffusers", "settings": {"config": {**KL, **more}, "interface": INTERFACE}}


#: What a folder from elsewhere says in its recipe.json, and what is said of it.
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a launcher of programs": (pythae(encoder=LAUNCHER), f"add --code {LAUNCHER}"),
    "a launcher of programs, without a model": (pythae(encoder=LAUNCHER, config=LAUNCH, interface=5), f"add --code {LAUNCHER}"),
    "a helper beside the folder": (modules("helper:call"), "add --code helper:call"),
    "two helpers": (pythae(encoder="helper:call", decoder="helper:leave"), "add --code helper:call --code helper:leave"),
    "leave": (modules("sys:exit"), "add --code sys:exit"),
    "abort": (modules("os:abort"), "add --code os:abort"),
    "serve": (modules("http.server:test"), "add --code http.server:test"),
    "permission given by itself": (modules("helper:call", code=["helper:call"]) | {"code": ["helper:call"]}, "add --code helper:call"),
    "no reference": (modules("helper.py; touch PWNED"), "which is no package.module:function"),
    "escape sequences": (modules("helper:call\x1b]0;PWNED\x07\n"), r"helper:call\x1b]0;PWNED\x07\n"),
    "a list of names": (modules(["helper:call"]), "does not describe a wrapped model"),
    "a kind that is a name": ({"recipe": "wrapped/helper:call", "settings": {}}, "no kind of wrapped model"),
    "a recipe that is a name": ({"recipe": "helper:call"}, 'no recipe "helper:call"'),
    "a network that is a name": ({"settings": {"network": "helper:call"}}, "helper:call"),
    "blocks that are names": (diffusers(down_block_types=["helper:call"] * 2), "invalid enum value"),
    "an activation that is a name": (diffusers(act_fn="helper.call"), "invalid enum value"),
    "settings that the library follows": (diffusers(quantization_config={"quant_method": "helper"}), "does not fit this model"),
    "a Pythae class that is a name": (pythae(config={**VAE, "name": "helper:call"}), "is not known"),
    "huge networks": (pythae(config={**VAE, "latent_dim": 2**20}), "larger networks"),
    "huge channels": (diffusers(block_out_channels=[8192, 8192]), "larger networks"),
    "huge codes": (pythae(interface={**INTERFACE, "latent_shape": [2**24, 2**24]}), "at most 67108864 numbers"),
}
NAMES = {"helper", "sys", "os", "http.server", "accelerate.commands.launch"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that every command takes, and a file that it compressed."""
    folder = tmp_path_factory.mktemp("security")
    settings = ["--set", "training.steps=2", "--set", "network=mlp-16", "--set", "latent=4"]
    assert (
        main(
            [
                "train",
                "yu2020/bits-back",
                "--data",
                "digits",
                "--budget",
                "smoke",
                *settings,
                "--device",
                "cpu",
                "--out",
                str(folder / "run"),
            ]
        )
        == 0
    )
    assert main(["compress", str(folder / "run"), "--n", "4", "--no-verify", "--no-peers", "-o", str(folder / "t.xpz")]) == 0
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a helper in it; no name that a file may say is imported, and the import path stays what it is."""
    (tmp_path / "helper.py").write_text(HELPER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    sys.modules.pop("helper", None)


@pytest.fixture
def tripwire(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.import_module

    def guarded(name: str, package: str | None = None) -> Any:
        assert name.partition(":")[0] not in NAMES, f"{name} is imported because a file says so"
        return plain(name, package)

    monkeypatch.setattr(importlib, "import_module", guarded)


def hostile(run: Path, at: Path, changes: dict[str, Any]) -> Path:
    """The folder with another description, which keeps its identity, and whose checksums are right: whoever writes code can write these too."""
    shutil.copytree(run, at)
    describe(RunFolder.at(at), changes)
    return at


def describe(folder: RunFolder, changes: dict[str, Any]) -> None:
    saved = json.loads(folder.recipe_file.read_text())
    if "recipe" in changes:
        del saved["experiment"]
    changed = {**saved, **changes}
    folder.write_recipe(changed)  # type: ignore[arg-type]
    tensors, meta = load_tensors(folder.model_file, "weights")
    save_tensors(folder.model_file, tensors, {**meta, "run": checksum(changed)})  # type: ignore[arg-type]


def openers() -> dict[str, type]:
    return {name: cls for name, cls in COMMANDS.items() if issubclass(cls, OpensModel)}


#: What a command needs beside the run folder. A new command is tried with nothing.
NEEDS = {"sample": ["--grid", "s.png"], "compress": ["-o", "o.xpz"], "decompress": ["-o", "o.npz"]}


def command(name: str, folder: Path, trained: Path) -> list[str]:
    first = [str(trained / "t.xpz"), "--run", str(folder)] if name == "decompress" else [str(folder)]
    return [name, *first, *NEEDS.get(name, [])]


@pytest.mark.parametrize("case", HOSTILE)
def test_no_command_runs_what_a_folder_names(
    case: str, trained: Path, place: Path, tripwire: None, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, sentence = HOSTILE[case]
    folder = hostile(trained / "run", place / "evil", changes)
    for name in openers() if "--code" in sentence else ["sample"]:  # what names no code fails in the one function that reads descriptions
        assert main(command(name, folder, trained)) == 2, name
        said = capsys.readouterr().err
        assert sentence in said, (name, said)
        assert said.startswith("expost: ")
        assert said.count("\n") == 1
        assert "\x1b" not in said
    main(["cite", str(folder)])
    assert main(["train", "yu2020/bits-back", "--data", "digits", "--budget", "smoke", "--out", str(folder), "--resume"]) != 0
    assert "helper" not in sys.modules
    assert sorted(p.name for p in place.iterdir()) == ["evil", "helper.py"]


def test_every_command_that_opens_a_run_asks() -> None:
    """A field that holds a run folder makes a command one of these; ``cite`` reads names of papers only."""
    holds = {name for name, cls in COMMANDS.items() if {f.name for f in dataclasses.fields(cls)} & {"folder", "run_folder"}}
    assert holds - {"cite"} == set(openers())
    for file in sorted((SOURCE / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("load_run", "load_model"):
                assert "code" in {keyword.arg for keyword in node.keywords}, f"{file.name}:{node.lineno} opens a run without --code"


def test_no_source_imports_a_computed_name() -> None:
    """``import_module`` of something else than a literal stands where the names are known: expost's own modules, and the user's word."""
    known = {
        "__init__.py",
        "adapt/references.py",
        "data/source.py",
        "papers/base.py",
        "runs/discovery.py",
    }
    texts = {str(file.relative_to(SOURCE)): file.read_text(encoding="utf-8") for file in sorted(SOURCE.rglob("*.py"))}
    assert {name for name, text in texts.items() if "import_module(" in text} == known
    for name, text in texts.items():
        found = re.search(r"\b(exec|__import__|run_module|os\.system|os\.popen)\(|(?<![.\w])eval\(", text)
        assert found is None, f"{name}: {found}"


def test_decompress_follows_a_file_to_no_code(trained: Path, place: Path, tripwire: None, capsys: pytest.CaptureFixture[str]) -> None:
    from expost.codec.container import Container, pack, unpack

    content = unpack((trained / "t.xpz").read_bytes())

    def points_at(folder: Path, density: str = "prior") -> None:
        header = dataclasses.replace(content.header, origin={"run": str(folder), "density": density})
        (place / "t.xpz").write_bytes(pack(Container(header, content.blocks, content.message)))

    folder = hostile(trained / "run", place / "evil", modules("helper:call"))
    points_at(folder)
    for more in ([], ["--code", "helper:call"]):
        assert main(["decompress", "t.xpz", *more]) == 2
        assert f"add --run {folder} --code helper:call" in capsys.readouterr().err
    outside = trained / "run" / "outside.safetensors"
    outside.write_bytes(b"")
    points_at(trained / "run", "../outside")
    assert main(["decompress", "t.xpz"]) == 2
    assert "outside.safetensors" not in capsys.readouterr().err
    points_at(trained / "run")
    assert main(["decompress", "t.xpz"]) == 0  # a recipe of expost's own is data alone
    images = np.load("t.npz")["images"]
    assert images.shape == (4, 1, 8, 8)
    assert {image.tobytes() for image in images} <= {image.tobytes() for image in load("digits").test.x.numpy()}
    assert not (place / "PWNED").exists()


@pytest.mark.parametrize("density", ["../outside", "a/../../b", "/etc/passwd", "gmm:3/../x", ".hidden", ""])
def test_a_density_is_a_file_of_its_run(trained: Path, density: str) -> None:
    with pytest.raises(ValueError, match="cannot read the density"):
        RunFolder.existing(trained / "run").density_file(density)


def test_laboratories_run_nothing(trained: Path, place: Path, tripwire: None) -> None:
    """`reproduce` and `claims` find runs by name in their folder, and take nobody's word for code."""
    settings = {"training.steps": 2, "network": "mlp-16", "latent": 4}
    run = Lab("digits", "smoke", place / "lab", device="cpu", progress=False).run("yu2020/bits-back", settings)
    assert run.folder is not None
    describe(run.folder, modules("helper:call"))
    with pytest.raises(ValueError, match="names code, which is never run unasked"):
        Lab("digits", "smoke", place / "lab", device="cpu", progress=False).run("yu2020/bits-back", settings)
    assert not (place / "PWNED").exists()


# -- the user's word --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("helper:call2", "and helper:call2 is other code"),
        ("helper", "and helper is other code"),
        ("helper:leave", 'returns "leave"'),
    ],
)
def test_other_code_than_the_recorded_is_refused(trained: Path, place: Path, named: str, sentence: str, tripwire: None) -> None:
    folder = hostile(trained / "run", place / "evil", modules("helper:call"))
    for opened in (load_run, load_model):
        with pytest.raises(ValueError, match=r'add --code helper:call \(in Python `code="helper:call"`\)'):
            opened(folder, device="cpu", code=named)
    assert not (place / "PWNED").exists()


def test_printed_commands_name_the_code_too(trained: Path, place: Path) -> None:
    from expost.runs.diagnosis import commands

    folder = RunFolder.at(hostile(trained / "run", place / "wrapped", pythae(encoder="mine:encoder", decoder="mine:decoder")))
    run, finding = SimpleNamespace(folder=folder), SimpleNamespace(name="holes", remedy=SimpleNamespace(density="gmm:10"))
    lines = commands(run, finding, None)  # type: ignore[arg-type]
    assert len(lines) == 3
    for line in lines:
        assert line.endswith("--code mine:encoder --code mine:decoder")


ENDS: dict[str, tuple[str, str]] = {
    "helper:leave": (r"helper:leave\(\) fails \(SystemExit: 0\)", "modules"),
    "helper:stop": (r"helper:stop\(\) fails \(Stop:\)", "modules"),
    "helper:needs": ('helper:needs needs "config".*give "config" a default', "encoder"),
    "os:abort": ("makes no networks", "modules"),
    "sys:exit": ("makes no networks", "modules"),
    "subprocess:Popen": ("makes no networks", "modules"),
    "helper:call": ("does not fit this model", "modules"),
}


@pytest.mark.parametrize("reference", ENDS)
def test_named_code_ends_in_a_sentence(trained: Path, place: Path, reference: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It has been named by the user, so it is imported; it is called without arguments, and what it raises is no success."""
    sentence, kind = ENDS[reference]
    changes = modules(reference) if kind == "modules" else pythae(encoder=reference)
    folder = hostile(trained / "run", place / "evil", changes)
    assert main(["sample", str(folder), "--grid", "s.png", "--code", reference, "--device", "cpu"]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_the_current_folder_shadows_nothing(place: Path) -> None:
    """A module there is found while it is named, after installed ones of its name."""
    from expost.adapt.references import resolve

    (place / "colorsys.py").write_text("import pathlib; pathlib.Path('PWNED').touch()\nmake = 1\n")
    sys.modules.pop("colorsys", None)
    with pytest.raises(ValueError, match=r"colorsys.*has no \"make\".*the installed one is taken"):
        resolve("colorsys:make")
    assert not (place / "PWNED").exists()
    (place / "beside.py").write_text("import sys; sys.path.insert(0, 'somewhere')\nmake = 1\n")
    assert resolve("beside:make") == 1
    sys.modules.pop("beside")


@pytest.mark.parametrize("kind", ["exit", "stop"])
def test_foreign_modules_cannot_end_the_program(kind: str) -> None:
    class Rude(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) < 5:
                raise SystemExit(0) if kind == "exit" else BaseException("no")
            return super().forward(x)

    model = wrap(torch.nn.Linear(6, 2), Rude(2, 6), torch.rand(20, 6))
    with pytest.raises(ValueError, match=r"the decoder fails on codes of shape \(2,\)"):
        model.decode_points(torch.zeros(3, 2))


# -- folders of other libraries ---------------------------------------------------------------------------------------------------------------


def _diffusers_folder(path: Path, **more: Any) -> Path:
    library = pytest.importorskip("diffusers")
    library.AutoencoderKL(**KL).save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **more}))
    return path


SOURCES: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "a class that is a name": (lambda p: _diffusers_folder(p, _class_name="helper:call"), "not an AutoencoderKL"),
    "a quantiser": (lambda p: _diffusers_folder(p, quantization_config={"quant_method": "helper"}), "no setting"),
    "an activation that is a name": (lambda p: _diffusers_folder(p, act_fn="helper.call"), "invalid enum value"),
    "blocks that are names": (lambda p: _diffusers_folder(p, down_block_types=["UNetRes", "helper:call"]), "invalid enum value"),
    "an automatic class": (lambda p: _diffusers_folder(p, auto_map={"AutoencoderKL": "helper.call"}), "no setting"),
    "what the library writes for itself": (lambda p: _diffusers_folder(p, _name_or_path="helper:call", _auto_map="helper:call"), None),
    "more layers than weights": (lambda p: _diffusers_folder(p, layers_per_block=60, block_out_channels=[4096, 4096]), "larger networks"),
    "blocks of other numbers": (lambda p: _diffusers_folder(p, block_out_channels=[8]), "as many of each kind"),
    "a Pythae class": (lambda p: pythae_folder(p, "helper:call"), "not known"),
    "Pythae sizes": (lambda p: _resized(p, latent_dim=2**20), "larger networks"),
    "a Pythae size that is none": (lambda p: _resized(p, input_dim=[8, -8]), "does not describe a Pythae model"),
    "pseudo-inputs": (lambda p: _resized(p, name="VAMPConfig", number_components=2**20), "larger networks"),
}


def _resized(path: Path, **changes: Any) -> None:
    pythae_folder(path)
    config = json.loads((path / "model_config.json").read_text())
    (path / "model_config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("case", SOURCES)
def test_model_folders_of_others(case: str, place: Path, tripwire: None, capsys: pytest.CaptureFixture[str]) -> None:
    make, sentence = SOURCES[case]
    make(place / "theirs")
    capsys.readouterr()
    code = main(["wrap", "theirs", "--data", "digits", "--device", "cpu", "--out", "run"])
    said = capsys.readouterr().err
    assert (code, said) == (0, "") if sentence is None else code == 2 and sentence in said, said
    assert not (place / "PWNED").exists()


def test_shards_lead_nowhere_else(tmp_path: Path) -> None:
    """An index beside the weights is not read: the parts are what lies in the folder; former names and lower precision are understood."""
    from safetensors.torch import load_file, save_file

    folder = _diffusers_folder(tmp_path / "kl")
    x = torch.rand(4, 1, 8, 8)
    whole = from_diffusers(folder, x)
    file = folder / "diffusion_pytorch_model.safetensors"
    state = {
        k.replace(".to_q.", ".query.").replace(".to_k.", ".key.").replace(".to_v.", ".value.").replace(".to_out.0.", ".proj_attn."): v
        for k, v in load_file(file).items()
    }
    assert any(".query." in name for name in state)
    file.unlink()
    names = sorted(state)
    for i, part in enumerate((names[:20], names[20:]), 1):
        save_file({name: state[name] for name in part}, folder / f"diffusion_pytorch_model-0000{i}-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../../elsewhere.safetensors")}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(from_diffusers(folder, x).reconstruct(x), whole.reconstruct(x))
    for part in folder.glob("*of-00002.safetensors"):
        part.unlink()
    save_file({k: v.half() for k, v in state.items()}, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.allclose(from_diffusers(folder, x).reconstruct(x), whole.reconstruct(x), atol=1e-2)
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(bytes(10**6))
    with pytest.raises(ValueError, match="is damaged"):
        from_diffusers(folder, x)


def test_pictures_are_no_programs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL would start Ghostscript for PostScript, by whatever name; and a table's paths lead out of its folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import EpsImagePlugin, Image

    (place / "gs").write_text("#!/bin/sh\ntouch PWNED\n")
    (place / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (place / "data").mkdir()
    for name in "abcd":
        with (place / "data" / f"{name}.png").open("wb") as file:
            Image.new("RGB", (8, 8)).save(file, "EPS")
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded"):
        load(place / "data", cache=place / "cache")
    assert not (place / "PWNED").exists()
    for name in ("outside.png", "data/inside.png"):
        Image.linear_gradient("L").resize((8, 8)).save(place / name)
    for path, sentence in (("inside.png", None), ("../outside.png", "outside of it"), (str(place / "outside.png"), "outside of it")):
        rows = pa.array([{"bytes": None, "path": path}] * 20, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"image": rows}), place / "data" / "train.parquet")
        if sentence is None:
            assert load(place / "data", cache=place / "cache").shape == (1, 8, 8)
        else:
            with pytest.raises(ValueError, match=sentence):
                load(place / "data", cache=place / "cache")


def test_sweeps_import_nothing_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would put it first on the path of the processes that a sweep starts."""
    from expost.runs.sweep.pool import Local, Work

    monkeypatch.chdir(tmp_path)
    (tmp_path / "colorsys.py").write_text("raise RuntimeError")
    work = Work([sys.executable, "-c", "import colorsys"], tmp_path / "log", lambda: True, lambda: True)
    (started,) = Local(1).start([work])
    while (end := started.ended()) is None:
        pass
    assert end.code == 0, (tmp_path / "log").read_text()
