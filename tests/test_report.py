"""Pictures and pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expost.report import Section, colours, grid, save_panels, save_picture, write_page
from expost.report.figures import strip_sections
from expost.results import Strips, Table


def test_grid_places_every_image() -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 2, 2)
    sheet = grid(images, columns=3, gap=1, scale=2)
    assert sheet.shape == (3, 2 * 5 - 1, 3 * 5 - 1)
    assert (sheet[:, 0:4, 0:4] == 0).all()
    assert (sheet[:, 5:9, 10:14] == 5).all()
    assert (sheet[:, 4] == 255).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 16])
def test_images_of_any_number_of_channels_are_drawn_and_it_is_said_how(tmp_path: Path, channels: int) -> None:
    images = torch.arange(channels, dtype=torch.uint8).add(1)[:, None, None].expand(2, channels, 4, 4)
    assert grid(images, gap=0)[:, 0, 0].tolist() == {1: [1, 1, 1], 2: [1, 2, 0]}.get(channels, [1, 2, 3])
    assert bool(colours(channels)) == (channels not in (1, 3))
    (section,) = strip_sections(tmp_path, [Strips("s", "title", "caption", {"row": images})])
    assert section.pictures == [tmp_path / "s.png"]
    assert ("Pictures show" in " ".join(section.text)) == (channels not in (1, 3))


def test_a_picture_that_cannot_be_drawn_is_a_note(tmp_path: Path) -> None:
    (section,) = strip_sections(tmp_path, [Strips("s", "title", "caption", {"row": torch.empty(0, 1, 4, 4)})])
    assert section.pictures == []
    assert "no picture" in section.text[-1]
    with pytest.raises(ValueError, match=r"a.xyz: pictures are written as .png"):
        save_picture(tmp_path / "a.xyz", grid(torch.rand(1, 1, 4, 4)))
    save_picture(tmp_path / "a.jpg", grid(torch.rand(1, 1, 4, 4)))
    assert (tmp_path / "a.jpg").read_bytes().startswith(b"\xff\xd8")


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
