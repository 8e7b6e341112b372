"""Pictures and pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expost.report import Section, grid, save_panels, save_picture, write_page
from expost.results import Table


def test_grid_places_every_image() -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 2, 2)
    sheet = grid(images, columns=3, gap=1, scale=2)
    assert sheet.shape == (3, 2 * 5 - 1, 3 * 5 - 1)
    assert (sheet[:, 0:4, 0:4] == 0).all()
    assert (sheet[:, 5:9, 10:14] == 5).all()
    assert (sheet[:, 4] == 255).all()
    with pytest.raises(ValueError, match="1 or 3 channels"):
        grid(torch.zeros(1, 2, 4, 4))


def test_floats_are_clipped_and_rounded() -> None:
    assert grid(torch.tensor([-1.0, 0.5, 2.0]).reshape(3, 1, 1, 1), columns=3, gap=0)[0, 0].tolist() == [0, 128, 255]


def test_pictures_are_written(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", grid(torch.rand(4, 3, 8, 8)))
    save_panels(tmp_path / "b.png", {"one": torch.rand(16, 1, 8, 8), "two": torch.rand(16, 1, 8, 8)}, title="panels")
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", grid(torch.rand(4, 3, 8, 8)))
    table = Table(("name", "value"), title="t", notes=["n = 3"])
    table.add("<b>x</b>", 0.123456)
    write_page(tmp_path / "r.html", "A & B", [Section("One", ["text <script>"], [table], [tmp_path / "a.png"], "code")])
    html = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "<script>" not in html
    assert "0.123<" in html
    assert "data:image/png;base64," in html
    assert "http" not in html
