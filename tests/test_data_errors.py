"""expost.data: whatever is wrong with the data is said in one sentence that names the culprit and a remedy."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from expost.data import Dataset, Split, load
from expost.data.splits import assign


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def png(seed: int = 0, *shape: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    picture = np.random.default_rng(seed).integers(0, 256, shape or (5, 5), dtype=np.uint8)
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def table(path: Path, columns: dict[str, list[object]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def rows(n: int) -> list[object]:
    return [{"bytes": png(i), "path": None} for i in range(n)]


def pictures(root: Path, n: int) -> None:
    for i in range(n):
        write(root / f"{i}.png", png(i))


def empty_folder(root: Path) -> None:
    (root / "deeper").mkdir(parents=True)


def foreign_folder(root: Path) -> None:
    write(root / "notes.txt", b"hello")


def corrupt_picture(root: Path) -> None:
    pictures(root, 5)
    write(root / "3.png", png(3)[:60])


def not_a_picture(root: Path) -> None:
    pictures(root, 5)
    write(root / "3.png", b"not a picture")


def sixteen_bits(root: Path) -> None:
    from PIL import Image

    pictures(root, 5)
    Image.fromarray(np.arange(25, dtype=np.uint16).reshape(5, 5) * 1000).save(root / "3.png")


def sizes_differ(root: Path) -> None:
    pictures(root, 5)
    write(root / "3.png", png(3, 6, 5))


def corrupt_row(root: Path) -> None:
    table(root / "train.parquet", {"image": [*rows(3), {"bytes": b"nonsense", "path": None}, *rows(3)]})


def hole(root: Path) -> None:
    table(root / "train.parquet", {"image": [*rows(3), {"bytes": None, "path": None}, *rows(3)]})


def lost_file(root: Path) -> None:
    table(root / "train.parquet", {"image": [*rows(3), {"bytes": None, "path": "gone.png"}]})


def truncated_parquet(root: Path) -> None:
    table(root / "train.parquet", {"image": rows(9)})
    write(root / "train.parquet", (root / "train.parquet").read_bytes()[:-20])


def scrambled_parquet(root: Path) -> None:
    table(root / "train.parquet", {"image": rows(9)})
    content = bytearray((root / "train.parquet").read_bytes())
    content[4:700] = bytes(696)
    write(root / "train.parquet", bytes(content))


def no_picture_column(root: Path) -> None:
    table(root / "train.parquet", {"smiles": ["C", "CC"]})


def empty_labels(root: Path) -> None:
    table(root / "train.parquet", {"image": rows(3), "label": [1, None, 0]})


def negative_labels(root: Path) -> None:
    table(root / "train.parquet", {"image": rows(30), "label": [-1, 1, 0] * 10})


def no_rows(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), root / "train.parquet")


def empty_test(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table(root / "train.parquet", {"image": rows(9)})
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), root / "test.parquet")


def too_few(root: Path) -> None:
    pictures(root, 2)


def no_train(root: Path) -> None:
    table(root / "valid.parquet", {"image": rows(3)})
    table(root / "test.parquet", {"image": rows(3)})


def constant(root: Path) -> None:
    for i in range(9):
        from PIL import Image

        root.mkdir(exist_ok=True)
        Image.fromarray(np.full((5, 5), 7, np.uint8)).save(root / f"{i}.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty_folder, r"holds nothing: give a folder with parquet files, pictures"),
        (foreign_folder, r"holds only \.txt: give a folder with"),
        (corrupt_picture, r"^3\.png cannot be decoded, it is damaged or not an image \(\w+\): replace or remove it$"),
        (not_a_picture, r"^3\.png cannot be decoded"),
        (sixteen_bits, r"^3\.png has more than 8 bits a channel"),
        (sizes_differ, r"images differ in size \(5 x 5 in 0\.png, 6 x 5 in 3\.png\): give size=32"),
        (corrupt_row, r"^train\.parquet, row 3 cannot be decoded"),
        (hole, r"^train\.parquet, row 3 holds no image: remove the row"),
        (lost_file, r"^train\.parquet, row 3 does not exist"),
        (truncated_parquet, r"train\.parquet is truncated or not a parquet file: download or copy it again"),
        (scrambled_parquet, r"train\.parquet is truncated or not a parquet file"),
        (no_picture_column, r"no column of encoded images \(its columns: smiles\)"),
        (empty_labels, r"the label column has empty entries"),
        (negative_labels, r"labels go from -1 to 1: number the classes 0, 1, 2"),
        (no_rows, r"is empty: give at least 3 examples"),
        (empty_test, r"the test split is empty"),
        (too_few, r"2 examples are too few to split: give at least 3"),
        (no_train, r"has no train split, only val and test"),
        (constant, r"train split: all 175 values equal 7, nothing can be learned"),
    ],
)
def test_folders(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "set")
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_an_error_in_a_later_block_names_both_sizes(tmp_path: Path) -> None:
    for i in range(600):
        write(tmp_path / f"{i:03d}.png", png(i % 7, 4, 4) if i < 550 else png(i % 7, 8, 4))
    with pytest.raises(ValueError, match=r"images differ in size \(4 x 4 in .*, 8 x 4 in 550\.png\)"):
        load(tmp_path)
    assert load(tmp_path, size=4).shape == (1, 4, 4)


def picture_array(n: int = 30, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *(shape or (5, 5))), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": np.where(np.arange(90).reshape(30, 3) == 40, np.nan, 0.5)},
            r"images hold NaN or infinity in 1 of 30 rows \(first: row 13\)",
        ),
        ({"images": np.where(np.arange(270).reshape(30, 3, 3) == 9, np.inf, 0.5)}, r"NaN or infinity in 1 of 30 rows \(first: row 1\)"),
        ({"images": picture_array(30, 25)}, r"has shape \(30, 25\): images are \(n, H, W\) or \(n, C, H, W\)"),
        ({"images": np.zeros(5)}, r"has shape \(5,\)"),
        ({"images": np.zeros((2, 2, 2, 2, 2))}, r"has shape \(2, 2, 2, 2, 2\)"),
        ({"images": np.zeros((0, 5, 5), np.uint8)}, r"is empty"),
        (
            {"images": np.random.default_rng(0).standard_normal((30, 5, 5))},
            r"has values from -\d.* to \d.*: scale images to \[0, 1\] first",
        ),
        ({"images": picture_array().astype(np.int32) + 1}, r"whole numbers from \d+ to 256: images need 0 \.\.\. 255"),
        ({"images": np.array(["a", "b"])}, r"is of type <U1: save it as numbers"),
        ({"images": picture_array() * 1j}, r"is of type complex128"),
        ({"images": picture_array(), "labels": np.arange(29)}, r"labels of shape \(29,\) for 30 examples: give one label per example"),
        ({"images": picture_array(), "labels": np.eye(30)}, r"labels of shape \(30, 30\) for 30 examples"),
        ({"images": picture_array(), "labels": np.linspace(0, 1, 30)}, r"labels of type float64: give whole numbers"),
        ({"labels": np.arange(30)}, r"holds labels but no data"),
        (
            {"train": picture_array(), "test": picture_array(5, 6, 5)},
            r"parts of set\.npz have different shapes or types \(train: uint8 \(30, 1, 5, 5\)",
        ),
        ({"train": picture_array(), "test": np.random.default_rng(0).random((5, 5, 5))}, r"train: uint8 .* test: float64"),
        ({"x_train": picture_array(), "train": picture_array()}, r"holds two arrays for train data: keep one"),
        ({"images": np.full((30, 5, 5), 0.25)}, r"all 600 values equal 0\.25"),
        ({}, r"holds no arrays"),
    ],
)
def test_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "set.npz")
    assert "\n" not in str(caught.value)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "x.npy", np.array([Bomb(), None], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "y.npz", images=np.array([Bomb(), None], dtype=object))
    import pickle

    (tmp_path / "z.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("x.npy", "y.npz"):
        with pytest.raises(ValueError, match="holds Python objects, which are never unpickled"):
            load(tmp_path / name)
    with pytest.raises(ValueError, match="is truncated or not a numpy file"):
        load(tmp_path / "z.npy")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 5, 40, 500, -30])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_truncated_arrays(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"x.{suffix}"
    np.save(path, picture_array()) if suffix == "npy" else np.savez_compressed(path, images=picture_array())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"is truncated or not a numpy file|is damaged"):
        load(path)


def test_damaged_compressed_bytes(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=picture_array())
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz is (truncated|damaged)"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ("mnits", {}, r'no data set or folder called "mnits": did you mean mnist'),
        ("zzzzzz", {}, r"there are digits, mnist"),
        ("./nowhere", {}, r"nowhere does not exist: check the path"),
        ("x.npz", {}, r"x\.npz does not exist: check the path"),
        ("a/b/c", {}, r"c does not exist"),
        ("mnist", {"path": "/nowhere/mnist"}, r"/nowhere/mnist does not exist"),
        ("digits", {"path": "."}, r"digits needs no path"),
        (__file__, {}, r"is none of \.parquet, \.npz, \.npy"),
        ("digits", {"pad_to": 7}, r"pad_to=7 is smaller than the images \(8 x 8\): give at least 8"),
        ("digits", {"size": 0}, r"size must be at least 1 pixel, not 0"),
        ("digits", {"crop": 9}, r"are 8 x 8, smaller than crop=9"),
        ("digits", {"max_items": 0}, r"max_items must be at least 1"),
        ("digits", {"val": 1497}, r"val=1497 of 1497 training examples is not possible"),
        ("digits", {"val": 1.5}, r"val=1\.5 of 1497"),
        ("checkerboard", {"size": 4}, r"checkerboard is points, not images"),
        ("checkerboard", {"val": 4}, r"is drawn, not split"),
        ("checkerboard", {"max_items": -1}, r"max_items must be at least 1"),
    ],
)
def test_arguments(arguments: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(arguments, **options)  # type: ignore[arg-type]


def test_val_where_there_is_a_validation_split() -> None:
    with pytest.raises(ValueError, match="comes with a validation split of 3: leave val out"):
        assign({"train": 9, "val": 3, "test": 3}, None, "x", val=2, seed=0, max_items=None)
    with pytest.raises(ValueError, match="1 training examples leave none for train"):
        assign({"train": 1, "test": 3}, None, "x", val=None, seed=0, max_items=None)


def test_points_cannot_be_padded_or_resized(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.random.default_rng(0).random((30, 2)))
    with pytest.raises(ValueError, match="leave out pad_to"):
        load(tmp_path / "p.npy", pad_to=4)
    with pytest.raises(ValueError, match="points, not images: leave out size=4 and crop=2"):
        load(tmp_path / "p.npy", size=4, crop=2)


def test_a_dataset_made_by_hand_is_checked() -> None:
    x = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    good = Split(x)
    for bad, message in [
        (Split(x[:0]), "val split is empty"),
        (Split(x[:, 0]), r"uint8 data must be images \(n, C, H, W\)"),
        (Split(x.to(torch.int32)), "expected uint8 images or floating-point data, not int32"),
        (Split(x.float()[:, :, :, 0].flatten()), r"expected data of shape \(n, \.\.\.\)"),
        (Split(x[..., :0]), "hold no numbers"),
        (Split(x.float() / 0), "hold NaN or infinity"),
        (Split(x, torch.arange(5)), r"6 examples but labels of shape \(5,\)"),
        (Split(x, torch.arange(6.0)), "give one int64 label per example"),
        (Split(x.float()), "the train split holds uint8 of 1x2x2, the val split float32 of 1x2x2"),
        (Split(x.reshape(3, 2, 2, 2)), "the val split uint8 of 2x2x2"),
    ]:
        with pytest.raises(ValueError, match=message):
            Dataset.of("made", good, bad, good)
