"""expost.data: sources, split rules, decoding, cache. Fixtures are built here; the oracle for pictures is the array they were made of."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from expost import data
from expost.data import Dataset, Split, load
from expost.data.decode import Decoder, decode
from expost.data.splits import Rule, assign


def images(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def encoded(picture: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def table(path: Path, pictures: list[bytes | None], labels: object = None, column: str = "image") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, object] = {column: [{"bytes": p, "path": None} for p in pictures]}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns, schema=None), path)


def folder(root: Path, tree: dict[str, np.ndarray]) -> Path:
    for name, picture in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture))
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


def rows_of(split: Split, of: np.ndarray) -> list[int]:
    """Which pictures of ``of`` (n, H, W) a split holds, in order; each must be there exactly."""
    found = {picture.tobytes(): i for i, picture in enumerate(of)}
    return [found[picture[0].numpy().tobytes()] for picture in split.x]


# ---------------------------------------------------------------- names that need no files


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    digits = load("digits")
    assert [len(s) for s in (digits.train, digits.val, digits.test)] == [1200, 297, 300]
    assert (digits.shape, digits.classes, digits.train.x.dtype) == ((1, 8, 8), 10, torch.uint8)
    raw = load_digits()
    original = sorted((np.rint(x * 255 / 16).astype(np.uint8).tobytes(), int(y)) for x, y in zip(raw.images, raw.target, strict=True))
    loaded = [(x.numpy().tobytes(), int(y)) for s in (digits.train, digits.val, digits.test) for x, y in zip(s.x, s.labels, strict=True)]
    assert sorted(loaded) == original
    assert load("digits", seed=7).hash == digits.hash  # the split is fixed
    assert torch.equal(load("digits", max_items=5).train.x, digits.train.x[:5])


def test_names_can_be_listed_and_cover_what_load_knows() -> None:
    listed = data.names()
    assert [len(entry) for entry in listed] == [3] * len(listed)
    assert {"digits", "mnist", "fashion_mnist", "cifar10", "celeba", "8gaussians", "checkerboard", "2spirals"} == {e[0] for e in listed}


def test_importing_the_package_imports_nothing_heavy_and_changes_no_state() -> None:
    code = (
        "import sys, torch; s = torch.get_rng_state(); n = torch.get_num_threads(); import expost.data;"
        "assert torch.equal(s, torch.get_rng_state()) and n == torch.get_num_threads() and torch.get_default_dtype() == torch.float32;"
        "print([m for m in ('datasets', 'pyarrow', 'PIL', 'sklearn', 'scipy', 'rich', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- parquet


def test_parquet_keeps_order_labels_and_parts(tmp_path: Path) -> None:
    x = images(12, 6, 5)
    table(tmp_path / "data/train-00000-of-00002.parquet", [encoded(p) for p in x[:4]], [3, 1, 2, 0], column="img")
    table(tmp_path / "data/train-00001-of-00002.parquet", [encoded(p) for p in x[4:6]], [1, 1], column="img")
    table(tmp_path / "data/validation-00000-of-00001.parquet", [encoded(p) for p in x[6:8]], [0, 1], column="img")
    table(tmp_path / "data/test-00000-of-00001.parquet", [encoded(p) for p in x[8:]], [-1] * 4, column="img")
    found = load(tmp_path)
    assert rows_of(found.train, x) == [0, 1, 2, 3, 4, 5]
    assert rows_of(found.val, x) == [6, 7]
    assert rows_of(found.test, x) == [8, 9, 10, 11]
    assert found.train.labels.tolist() == [3, 1, 2, 0, 1, 1]
    assert found.test.labels is None  # -1: the hub's sign for hidden labels
    assert (found.classes, found.name) == (4, tmp_path.name)


def test_known_folder_names_hold_out_the_last_tenth_of_a_part_and_say_so(tmp_path: Path) -> None:
    x = images(25, 4, 4)
    for name in ("mnist", "Fashion-MNIST"):
        table(tmp_path / name / "train-00000-of-00001.parquet", [encoded(p) for p in x[:20]], list(range(10)) * 2)
        table(tmp_path / name / "test-00000-of-00001.parquet", [encoded(p) for p in x[20:]], [0] * 5)
    found = load(tmp_path / "mnist")
    assert rows_of(found.train, x) == list(range(18))
    assert rows_of(found.val, x) == [18, 19]
    assert any("20 of 60000" in note for note in found.notes)
    assert load("mnist", path=tmp_path / "mnist").hash == found.hash
    assert load(tmp_path / "Fashion-MNIST").name == "fashion_mnist"
    assert rows_of(load(tmp_path / "mnist", val=5).val, x) == [15, 16, 17, 18, 19]
    assert len(load(tmp_path / "mnist", val=0.25).val) == 5
    assert rows_of(load(tmp_path / "mnist", max_items=3).val, x) == [18, 19]
    assert rows_of(load(tmp_path / "mnist", max_items=3).train, x) == [0, 1, 2]


@pytest.mark.parametrize("layout", ["table", "{part}/{y}/{i:02}", "{part}/{y}_{i:02}", "stray", "{part}/{i:02}"])
def test_a_known_name_does_not_cut_classes_off_data_that_come_sorted_by_class(layout: str, tmp_path: Path) -> None:
    """Tables by their labels; pictures by folders (also where a stray file takes the labels away) and names. Numbered files are in their order."""
    x, place, numbered = images(60, 4, 4), tmp_path / "mnist", layout == "{part}/{i:02}"
    if layout == "table":
        table(place / "train.parquet", [encoded(p) for p in x[:50]], [i // 10 for i in range(50)])
        table(place / "test.parquet", [encoded(p) for p in x[50:]], [0, 1] * 5)
    else:
        name = "{part}/{y}/{i:02}" if layout == "stray" else layout
        tree = {name.format(part="test" if i >= 50 else "train", y=i % 50 // 10, i=i) + ".png": picture for i, picture in enumerate(x)}
        folder(place, tree | ({"train/99.png": x[0]} if layout == "stray" else {}))
    val = rows_of(load(place).val, x)
    assert len(val) == 5
    assert (len({row // 10 for row in val}) > 1) is not numbered
    assert (val == [45, 46, 47, 48, 49]) is numbered
    assert (len({row // 10 for row in rows_of(load(place, max_items=8).train, x)}) > 1) is not numbered


def test_full_size_rule_is_the_last_ten_thousand() -> None:
    rows, _ = assign({"train": 60_000, "test": 10_000}, Rule(60_000, 10_000), "mnist", val=None, seed=0, max_items=None)
    assert torch.equal(rows["train"], torch.arange(50_000))
    assert torch.equal(rows["val"], torch.arange(50_000, 60_000))
    assert torch.equal(rows["test"], torch.arange(60_000, 70_000))


def test_without_test_split_tenths_are_drawn_by_seed_and_nothing_is_lost(tmp_path: Path) -> None:
    x = images(40, 4, 4)
    table(tmp_path / "all.parquet", [encoded(p) for p in x], ["b", "a"] * 20)
    found = load(tmp_path)
    rows = [rows_of(s, x) for s in (found.train, found.val, found.test)]
    assert list(map(len, rows)) == [32, 4, 4]
    assert sorted(rows[0] + rows[1] + rows[2]) == list(range(40))
    assert found.train.labels.tolist() == [1 - i % 2 for i in rows[0]]  # names are numbered in sorted order
    assert load(tmp_path).hash == found.hash
    assert load(tmp_path, seed=1).hash != found.hash
    few = load(tmp_path, max_items=3)
    assert set(rows_of(few.train, x)) <= set(rows[0])
    assert len(few.train) == 3
    assert load(tmp_path / "all.parquet").hash == found.hash


def test_missing_shards_and_jpeg_are_noted(tmp_path: Path) -> None:
    x = images(20, 8, 8, 3)
    table(tmp_path / "cifar10" / "train-00000-of-00003.parquet", [encoded(p, "JPEG") for p in x])
    found = load(tmp_path / "cifar10")
    assert any("only 1 of the 3 files" in note for note in found.notes)
    assert any("JPEG" in note and "say so" in note for note in found.notes)
    assert found.notes == load(tmp_path / "cifar10").notes  # also from the cache


# ---------------------------------------------------------------- folders of pictures


def test_picture_folders(tmp_path: Path) -> None:
    x = images(30, 5, 5)
    tree = {
        f"{part}/{name}/{i}.png": x[i]
        for i, (part, name) in enumerate([("train", "cat"), ("train", "dog"), ("test", "cat"), ("valid", "dog")])
    }
    found = load(folder(tmp_path / "parts", tree))
    assert [rows_of(s, x) for s in (found.train, found.val, found.test)] == [[0, 1], [3], [2]]
    assert (found.train.labels.tolist(), found.val.labels.tolist(), found.test.labels.tolist()) == ([0, 1], [1], [0])

    classes = load(folder(tmp_path / "classes", {f"{'train' if i % 2 else 'bus'}/{i:02d}.png": x[i] for i in range(30)}))
    assert classes.classes == 2  # here "train" is a vehicle
    assert [len(s) for s in (classes.train, classes.val, classes.test)] == [24, 3, 3]
    assert all(int(y) == i % 2 for i, y in zip(rows_of(classes.train, x), classes.train.labels, strict=True))

    flat = load(folder(tmp_path / "flat", {f"{i:02d}.png": x[i] for i in range(10)}))
    assert flat.classes == 0
    assert sorted(rows_of(flat.train, x) + rows_of(flat.val, x) + rows_of(flat.test, x)) == list(range(10))


def test_a_known_set_sorted_by_class_is_not_cut_at_its_end(tmp_path: Path) -> None:
    x = images(42, 4, 4)
    tree = {f"train/{i // 20}/{i:02d}.png": x[i] for i in range(40)} | {f"test/{i}/{i}.png": x[40 + i] for i in range(2)}
    found = load(folder(tmp_path / "mnist", tree), val=20)
    assert found.val.labels.unique().tolist() == [0, 1]  # the last 20 would all be of class 1


def test_celeba_folder_follows_the_official_partition_crop_and_size(tmp_path: Path) -> None:
    from PIL import Image

    place = tmp_path / "celeba" / "img_align_celeba"
    place.mkdir(parents=True)
    x = images(4, 218, 178, 3)
    for number, picture in zip((1, 162_770, 162_771, 182_638), x, strict=True):
        (place / f"{number:06d}.png").write_bytes(encoded(picture))
    found = load(tmp_path / "celeba")
    assert [len(s) for s in (found.train, found.val, found.test)] == [2, 1, 1]
    assert (found.shape, found.classes) == ((3, 64, 64), 0)
    expected = Image.fromarray(x[0][39:179, 19:159]).resize((64, 64), Image.Resampling.BILINEAR)  # ghosh2020
    assert np.array_equal(found.train.x[0].permute(1, 2, 0).numpy(), np.asarray(expected))
    whole = load(tmp_path / "celeba", crop=128, size=128)  # dai2019: rows 45-173, columns 25-153
    assert np.array_equal(whole.test.x[0].permute(1, 2, 0).numpy(), x[3][45:173, 25:153])


def test_grey_among_colour_palette_alpha_and_orientation(tmp_path: Path) -> None:
    from PIL import Image

    grey, colour = images(6, 4, 4), images(2, 4, 4, 3)
    blocks = [[encoded(grey[0])], [encoded(colour[0])], [encoded(grey[1]), encoded(colour[1])]]
    out = decode(blocks, 4, str, Decoder())
    assert torch.equal(out[0], torch.from_numpy(grey[0]).expand(3, 4, 4))
    assert np.array_equal(out[3].permute(1, 2, 0).numpy(), colour[1])
    assert np.array_equal(out[2, 1].numpy(), grey[1])

    decoder = Decoder()
    with_alpha = np.concatenate([colour[0], grey[2][..., None]], 2)
    out = decode([[encoded(with_alpha)]], 1, str, decoder)
    assert np.array_equal(out[0].permute(1, 2, 0).numpy(), colour[0])
    assert any("RGBA" in note and "alpha" in note for note in decoder.notes())

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    tall = images(1, 4, 6)[0]
    out = decode([[encoded(tall, exif=exif)]], 1, str, Decoder())
    assert np.array_equal(out[0, 0].numpy(), np.rot90(tall, -1))


def test_decoding_some_rows_equals_decoding_all() -> None:
    x = images(1100, 3, 3)
    blocks = [[encoded(p) for p in x[:700]], [encoded(p) for p in x[700:]]]
    rows = torch.tensor([0, 5, 511, 512, 699, 700, 1099])
    assert np.array_equal(decode(blocks, 1100, str, Decoder(), rows=rows)[:, 0].numpy(), x[rows.numpy()])
    assert np.array_equal(decode(blocks, 1100, str, Decoder())[:, 0].numpy(), x)


def test_size_and_padding(tmp_path: Path) -> None:
    from PIL import Image

    x = images(10, 7, 9)
    place = folder(tmp_path / "wide", {f"{i}.png": x[i] for i in range(10)})
    found = load(place, pad_to=12)
    assert found.shape == (1, 12, 12)
    assert not found.train.x[:, :, :2].any()
    assert not found.train.x[:, :, 9:].any()
    assert rows_of(Split(found.train.x[:, :, 2:9, 1:10]), x)  # the image itself, in the centre
    small = load(place, size=4)
    expected = {np.asarray(Image.fromarray(p[:, 1:8]).resize((4, 4), Image.Resampling.BILINEAR)).tobytes() for p in x}
    assert {p[0].numpy().tobytes() for p in small.train.x} <= expected
    assert any("square" in note for note in small.notes)
    assert load(place, size=4, pad_to=6).shape == (1, 6, 6)


# ---------------------------------------------------------------- arrays


def test_npz_parts_and_labels_in_their_usual_names(tmp_path: Path) -> None:
    x, y = images(20, 6, 6), np.arange(20) % 3
    np.savez(tmp_path / "a.npz", x_train=x[:12], y_train=y[:12, None], x_test=x[16:], y_test=y[16:], x_val=x[12:16], y_val=y[12:16])
    np.savez_compressed(
        tmp_path / "b.npz", train=x[:12], train_labels=y[:12], test=x[16:], test_labels=y[16:], valid=x[12:16], valid_labels=y[12:16]
    )
    one, two = load(tmp_path / "a.npz"), load(tmp_path / "b.npz")
    assert one.hash == two.hash
    assert rows_of(one.test, x) == [16, 17, 18, 19]
    assert one.val.labels.tolist() == y[12:16].tolist()
    for name, array in {"x_train": x[:12], "x_test": x[16:], "x_valid": x[12:16]}.items():
        (tmp_path / "many").mkdir(exist_ok=True)
        np.save(tmp_path / "many" / f"{name}.npy", array)
        np.save(tmp_path / "many" / f"{name.replace('x', 'y', 1)}.npy", y[: len(array)])
    assert torch.equal(load(tmp_path / "many").train.x, one.train.x)
    (tmp_path / "two").mkdir()
    np.savez(tmp_path / "two" / "train.npz", images=x[:12], labels=y[:12])
    np.savez(tmp_path / "two" / "test.npz", images=x[16:], labels=y[16:])
    assert torch.equal(load(tmp_path / "two").test.x, one.test.x)
    np.savez(tmp_path / "mnist.npz", x_train=x, x_test=x)
    assert rows_of(load("mnist", path=tmp_path / "mnist.npz").val, x) == [18, 19]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x[..., None],
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float32) / np.float32(255),
        lambda x: x.astype(np.float32) * (np.float32(1) / np.float32(255)),
        lambda x: x / 255,
        lambda x: (x / 255).astype(">f8"),
        lambda x: np.asfortranarray(x[:, None]),
    ],
)
def test_arrays_without_loss_become_uint8(tmp_path: Path, change: object) -> None:
    x = images(30, 5, 5)
    np.savez(tmp_path / "x.npz", images=change(x))  # type: ignore[operator]
    found = load(tmp_path / "x.npz")
    assert found.train.x.dtype == torch.uint8
    assert sorted(rows_of(found.train, x) + rows_of(found.val, x) + rows_of(found.test, x)) == list(range(30))


def test_arrays_with_loss_stay_floats_and_channels_move(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((20, 5, 6, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", train=x, test=x[:4], val=x[:2])
    found = load(tmp_path / "x.npz")
    assert found.train.x.dtype == torch.float32
    assert torch.equal(found.train.x, torch.from_numpy(x).permute(0, 3, 1, 2))
    assert any("channels" in note for note in found.notes)
    points = rng.standard_normal((20, 2))
    np.save(tmp_path / "p.npy", points)
    assert (load(tmp_path / "p.npy").shape, load(tmp_path / "p.npy").train.x.dtype) == ((2,), torch.float32)
    np.save(tmp_path / "b.npy", rng.random((20, 4, 4)) > 0.5)
    assert load(tmp_path / "b.npy").train.x.unique().tolist() == [0, 255]


# ---------------------------------------------------------------- the cache


def cache_files(place: Path) -> list[Path]:
    return sorted(place.glob("expost/data/*"))


def test_cache_is_used_rebuilt_when_damaged_and_keyed_by_content_and_options(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expost.data import tables

    x = images(30, 5, 5)
    table(tmp_path / "set" / "train.parquet", [encoded(p) for p in x], [0, 1] * 15)
    decoded = []
    monkeypatch.setattr(tables, "decode", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    first = load(tmp_path / "set")
    assert (load(tmp_path / "set").hash, len(decoded)) == (first.hash, 1)
    (file,) = cache_files(cache)
    sound = file.read_bytes()
    flipped = bytearray(sound)
    flipped[-5] ^= 1
    for number, damaged in enumerate([sound[:-7], sound[:20], b"", b"nonsense" * 50, bytes(flipped)], start=2):
        file.write_bytes(damaged)
        assert (load(tmp_path / "set").hash, len(decoded)) == (first.hash, number)
        assert file.read_bytes() == sound
    assert load(tmp_path / "set", seed=3).train.x.shape == first.train.x.shape  # another split of the same decoded images
    load(tmp_path / "set", max_items=4)
    assert len(decoded) == 6
    load(tmp_path / "set", size=4)
    assert len(decoded) == 7
    os.utime(tmp_path / "set" / "train.parquet", (1, 1))  # a copy with another time is the same content
    load(tmp_path / "set")
    assert len(decoded) == 7
    table(tmp_path / "set" / "train.parquet", [encoded(255 - p) for p in x], [0, 1] * 15)
    assert load(tmp_path / "set").hash != first.hash


def test_a_few_images_do_not_decode_all_and_are_cached_too(tmp_path: Path, cache: Path) -> None:
    x = images(30, 5, 5)
    table(tmp_path / "mnist" / "train.parquet", [encoded(p) for p in x[:20]])
    table(tmp_path / "mnist" / "test.parquet", [encoded(p) for p in x[20:]])
    few = load(tmp_path / "mnist", max_items=2)
    assert cache_files(cache)[0].stat().st_size < 30 * 25 + 200
    again = load(tmp_path / "mnist", max_items=2)
    assert again.hash == few.hash
    assert [rows_of(s, x) for s in (again.train, again.val, again.test)] == [[0, 1], [18, 19], [20, 21]]


def test_a_cache_that_cannot_be_written_costs_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    table(tmp_path / "set" / "train.parquet", [encoded(p) for p in images(10, 5, 5)])
    assert any("not cached" in note for note in load(tmp_path / "set", cache=tmp_path / "file").notes)


def test_changing_a_loaded_tensor_leaves_the_cache_alone(tmp_path: Path) -> None:
    table(tmp_path / "set" / "train.parquet", [encoded(p) for p in images(10, 5, 5)])
    load(tmp_path / "set")
    found = load(tmp_path / "set")
    found.train.x.zero_()
    found.val.x.zero_()
    assert load(tmp_path / "set").hash == found.hash


def test_progress_bar_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for stream, expected in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        decode([[encoded(p) for p in images(3, 4, 4)]], 3, str, Decoder(), name="things")
        assert ("things" in stream.getvalue()) is expected


# ---------------------------------------------------------------- the data set itself


def test_dataset_hash_repr_and_device() -> None:
    x = torch.from_numpy(images(12, 1, 4, 4))
    y = torch.arange(12) % 4
    made = Dataset.of("toy", Split(x[:8], y[:8]), Split(x[8:10], y[8:10]), Split(x[10:], y[10:]))
    assert repr(made) == f"toy: 8/2/2 train/val/test images of 1x4x4 uint8, 4 classes, hash {made.hash}"
    assert repr(made.train) == "Split(8 x 1x4x4 uint8, labels)"
    assert Dataset.of("other", Split(x[:8], y[:8]), Split(x[8:10], y[8:10]), Split(x[10:], y[10:])).hash == made.hash
    assert Dataset.of("toy", Split(x[:8]), Split(x[8:10], y[8:10]), Split(x[10:], y[10:])).hash != made.hash
    changed = x.clone()
    changed[11, 0, 3, 3] += 1
    assert Dataset.of("toy", Split(x[:8], y[:8]), Split(x[8:10], y[8:10]), Split(changed[10:], y[10:])).hash != made.hash
    moved = made.to("cpu")
    assert (moved.train.x.device.type, moved.hash) == ("cpu", made.hash)
    with pytest.raises(ValueError, match="--device cpu"):
        made.to("meta")


# ---------------------------------------------------------------- the real data, where it lies beside the repository


@pytest.mark.shared
def test_real_mnist(shared_data: Path) -> None:
    mnist = load(shared_data / "mnist")
    assert mnist.train.labels[:3].tolist() == [5, 0, 4]
    assert [len(s) for s in (mnist.train, mnist.val, mnist.test)] == [50_000, 10_000, 10_000]
    assert mnist.test.labels.bincount()[9] == 1009  # bozkurt2018: "1009 nines"
    assert mnist.shape == (1, 28, 28)
    padded = load("mnist", path=shared_data / "mnist", pad_to=32)
    assert torch.equal(padded.val.x[:, :, 2:30, 2:30], mnist.val.x)
    assert padded.val.x.sum(dtype=torch.int64) == mnist.val.x.sum(dtype=torch.int64)


@pytest.mark.shared
def test_real_part_of_cifar10(shared_data: Path) -> None:
    found = load(shared_data / "cifar10", max_items=500)
    assert (found.shape, found.name, len(found.val)) == ((3, 32, 32), "cifar10", 500)
    assert any("20000 of 50000" in note for note in found.notes)
    assert any("JPEG" in note for note in found.notes)
    assert any("the last 2000 of 20000" in note for note in found.notes)
