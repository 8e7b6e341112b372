"""Densities by name and as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expost.density import GMM, KDE, SPECS, Flow, FullGaussian, StandardNormal, load_density, parse, save_density
from expost.system.files import save_tensors


@pytest.mark.parametrize(
    ("spec", "kind", "attributes"),
    [
        ("normal", StandardNormal, {}),
        ("gaussian", FullGaussian, {}),
        ("gmm", GMM, {"components": 10, "covariance": "full"}),
        ("gmm:3", GMM, {"components": 3}),
        ("gmm:3:diagonal", GMM, {"components": 3, "covariance": "diagonal"}),
        ("kde", KDE, {"bandwidth": "scott"}),
        ("kde:cv", KDE, {"bandwidth": "cv"}),
        ("kde:0.425", KDE, {"bandwidth": 0.425}),
        ("flow", Flow, {"kind": "nsf"}),
        ("flow:maf", Flow, {"kind": "maf"}),
    ],
)
def test_parse_and_back(spec: str, kind: type, attributes: dict[str, object]) -> None:
    density = parse(spec, 3)
    assert type(density) is kind
    assert density.d == 3
    assert {k: getattr(density, k) for k in attributes} == attributes
    assert density.spec == ("gmm:10" if spec == "gmm" else spec)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("gausian", 'did you mean "gaussian"'),
        ("gmmm:10", 'did you mean "gmm"'),
        ("xyz", "choose one of normal, gaussian, gmm, kde, flow"),
        ("", "choose one of"),
        ("gmm:ten", "write gmm:10 or gmm:10:diagonal"),
        ("gmm:0", "write gmm:10"),
        ("gmm:3:tied", "write gmm:10"),
        ("gmm:3:full:4", "write gmm:10"),
        ("kde:wide", "write kde, kde:cv or kde:0.425"),
        ("normal:2", "write normal"),
        ("flow:realnvp", "write flow or flow:maf"),
    ],
)
def test_a_spec_that_cannot_be_read(spec: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        parse(spec, 3)
    assert "\n" not in str(error.value)


def test_a_missing_library_is_not_called_a_bad_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zuko.flows", None)
    with pytest.raises(ImportError, match="pip install"):
        parse("flow", 2)


def test_specs_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPECS, "stage", lambda d, width="8": GMM(d, int(width)))
    density = parse("stage:5", 2)
    assert isinstance(density, GMM)
    assert density.components == 5
    with pytest.raises(ValueError, match='did you mean "stage"'):
        parse("stge", 2)


def test_arguments_that_a_spec_does_not_say_are_kept(tmp_path: Path) -> None:
    z = torch.randn(80, 2)
    for density in (KDE(2, points=50).fit(z), Flow(2, 1, (8, 4), 5, steps=3).fit(z)):
        save_density(tmp_path / "p.safetensors", density)
        loaded = load_density(tmp_path / "p.safetensors")
        with torch.no_grad():
            assert torch.equal(loaded().log_prob(z), density().log_prob(z))
        assert not loaded.training


def test_the_standard_normal_as_a_file(tmp_path: Path) -> None:
    save_density(tmp_path / "n.safetensors", StandardNormal(4))
    assert load_density(tmp_path / "n.safetensors")().event_shape == (4,)


def test_an_unfitted_density_stays_unfitted(tmp_path: Path) -> None:
    save_density(tmp_path / "p.safetensors", GMM(2, 3))
    with pytest.raises(ValueError, match="has not been fitted"):
        load_density(tmp_path / "p.safetensors")()


def test_files_that_are_not_densities(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    with pytest.raises(ValueError, match="does not exist"):
        load_density(path)
    save_density(path, GMM(2, 3).fit(torch.randn(50, 2)))
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or is not a fitted density"):
            load_density(path)
    path.write_bytes(b"\x80\x04" + 500 * b"x")
    with pytest.raises(ValueError, match="truncated or is not"):
        load_density(path)
    save_tensors(path, {"a": torch.zeros(3)}, {"kind": "model"})
    with pytest.raises(ValueError, match="is not a fitted density") as error:
        load_density(path)
    assert "\n" not in str(error.value)
    save_tensors(path, {"a": torch.zeros(3)}, {"kind": "density", "spec": "gmm:3", "d": 2, "arguments": {}, "report": None})
    with pytest.raises(ValueError, match="not a density that this version can read"):
        load_density(path)
