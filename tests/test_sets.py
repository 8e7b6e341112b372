"""Image sets: lazy reading, exact samples, bounded memory, files whole or absent; the same bits for one, two and three processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from expost.evaluate.features.base import Pixels, RandomNetwork, Wrapped, extract
from expost.evaluate.features.sets import ArraySet, FolderSet, Generated, ImageSet, InMemory, Mapped, set_features, set_statistics
from expost.evaluate.metrics.frechet import FeatureStats, frechet_distance
from toys import convolutional, model, pictures

HERE = Path(__file__).parent
NETWORK = RandomNetwork((1, 8, 8), seed=3)


def save_pngs(folder: Path, x: Tensor, names: list[str] | None = None) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(x.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(folder / (names[i] if names else f"{i:04d}.png"))


class Recorded:
    """A set that remembers what was read."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.name, self.shape, self.reads = x, "recorded", tuple(x.shape[1:]), list[tuple[int, int]]()

    def __len__(self) -> int:
        return len(self.x)

    def read(self, start: int, stop: int) -> Tensor:
        self.reads.append((start, stop))
        return self.x[start:stop]


# ------------------------------------------------------------------------------------------------------------------ the sets


def test_every_set_gives_the_images_it_was_made_of(tmp_path: Path) -> None:
    x = pictures(53)
    save_pngs(tmp_path / "folder", x)
    np.save(tmp_path / "x.npy", x.numpy())
    np.savez(tmp_path / "plain.npz", labels=np.arange(53), images=x.numpy())
    np.savez_compressed(tmp_path / "small.npz", images=x.numpy())
    every = [InMemory(x), FolderSet(tmp_path / "folder"), Mapped(InMemory(x), lambda b: b)]
    every += [ArraySet(tmp_path / name) for name in ("x.npy", "plain.npz", "small.npz")]
    for images in every:
        assert isinstance(images, ImageSet)
        assert (len(images), images.shape) == (53, (1, 8, 8))
        for start, stop in ((0, 53), (7, 20), (52, 53), (5, 5)):
            assert torch.equal(images.read(start, stop), x[start:stop]), images
        with pytest.raises(ValueError, match=r"has images 0 to 52: images 50 to 53 cannot be read"):
            images.read(50, 54)
        assert torch.equal(set_features(NETWORK, images, batch_size=20), extract(NETWORK, x, batch_size=20))


def test_generated_images_are_those_of_generate_bit_for_bit() -> None:
    for m, n in ((convolutional(), 1203), (convolutional(), 3)):
        expected = m.generate(n, seed=5)
        images = Generated(m, n, seed=5)
        assert torch.equal(torch.cat([images.read(a, min(a + 170, n)) for a in range(0, n, 170)]), expected)
        assert torch.equal(images.read(n // 3, n), expected[n // 3 :])
        assert images.shape == (1, 8, 8)
        assert torch.equal(set_features(NETWORK, images), extract(NETWORK, expected))
    assert not torch.equal(Generated(m, 3, seed=6).read(0, 3), expected)
    with pytest.raises(ValueError, match="not images"):
        Generated(model(), 3)
    with pytest.raises(ValueError, match="at least 1"):
        Generated(m, 0)


def test_generated_images_are_decoded_once_and_never_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    m = convolutional()
    images, sizes, decode = Generated(m, 2100), list[int](), type(m).decode_points

    def counting(self: Any, z: Tensor, **options: Any) -> Tensor:
        sizes.append(len(z))
        return decode(self, z, **options)

    monkeypatch.setattr(type(m), "decode_points", counting)
    set_features(NETWORK, images, batch_size=250)
    assert sizes == [500, 500, 500, 100], "the first batch was kept from the start"


def test_a_folder_is_read_in_sorted_order_and_decoded_when_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expost.data.decode import Decoder

    x = torch.cat([pictures(4)] * 3, 1)
    save_pngs(tmp_path, x[:3], ["b.png", "a.PNG", "10.png"])
    save_pngs(tmp_path / "sub", x[3:], ["0.png"])
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    images = FolderSet(tmp_path)
    opened, decode = list[str](), Decoder.encoded
    monkeypatch.setattr(Decoder, "encoded", lambda self, item: opened.append(item.name) or decode(self, item))  # type: ignore[union-attr]
    assert torch.equal(images.read(1, 3), x[[1, 0]])
    assert opened == ["a.PNG", "b.png"]
    assert torch.equal(images.read(0, 4), x[[2, 1, 0, 3]])
    assert FolderSet(tmp_path, size=4).read(0, 1).shape == (1, 3, 4, 4)


def test_pictures_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save_pngs(tmp_path, pictures(2))
    save_pngs(tmp_path, pictures(1, size=9), ["0002.png"])
    save_pngs(tmp_path, torch.cat([pictures(1)] * 3, 1), ["0003.png"])
    (tmp_path / "0004.png").write_bytes(b"no picture")
    images = FolderSet(tmp_path)
    for at, sentence in ((2, r"0002.png is 9 x 9 where the first picture of .* is 8 x 8: give size=32"), (3, r"0003.png is in colour .* channels=3"),
                         (4, r"0004.png cannot be decoded")):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            images.read(at, at + 1)
    assert torch.equal(FolderSet(tmp_path, channels=3).read(0, 1), pictures(2)[:1].expand(-1, 3, -1, -1)), "grey among colour"
    with pytest.raises(ValueError, match=r"images 0 to 4: .*0002.png is 9 x 9"):
        set_features(Pixels((1, 8, 8)), images)
    (tmp_path / "empty").mkdir()
    for path, sentence in ((tmp_path / "empty", "holds no pictures"), (tmp_path / "absent", "is not a folder")):
        with pytest.raises(ValueError, match=sentence):
            FolderSet(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), (2, 1, 3, 4)),
        (np.arange(24 * 3, dtype=np.int64).reshape(2, 3, 4, 3), (2, 3, 4, 3)),  # three rows or three channels: channels, as in expost.data
        (np.arange(2 * 5 * 4 * 3, dtype=np.int16).reshape(2, 5, 4, 3), (2, 3, 5, 4)),
        (np.linspace(0, 1, 24).astype(">f4").reshape(2, 1, 3, 4), (2, 1, 3, 4)),
        (np.asfortranarray(np.linspace(0, 1, 24).reshape(2, 1, 3, 4)), (2, 1, 3, 4)),
        (np.arange(24).reshape(2, 3, 4) % 3 == 0, (2, 1, 3, 4)),
    ],
)
def test_arrays_of_many_kinds(tmp_path: Path, array: np.ndarray, expected: tuple[int, ...], compressed: bool) -> None:
    from expost.data.arrays import to_data

    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", x=array)
    np.save(tmp_path / "x.npy", array)
    oracle = to_data(array, "x")[0]
    for path in (tmp_path / "x.npy", tmp_path / "x.npz"):
        images = ArraySet(path)
        assert (len(images), *images.shape) == expected
        assert torch.equal(images.read(0, 2), oracle)
        assert torch.equal(images.read(1, 2), oracle[1:])
        assert images.read(0, 2).is_contiguous()


def test_arrays_that_are_no_images_are_refused(tmp_path: Path) -> None:
    good = np.zeros((4, 1, 2, 2), np.uint8)
    np.save(tmp_path / "good.npy", good)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "points.npy", np.zeros((3, 2)))
    np.save(tmp_path / "text.npy", np.array([[["a"]]]))
    np.save(tmp_path / "large.npy", np.full((2, 1, 2, 2), 256))
    np.savez(tmp_path / "two.npz", a=good, b=good)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-1])
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:200])
    for name, sentence in {
        "objects.npy": "never unpickled", "points.npy": r"has shape \(3, 2\)", "text.npy": "is of type", "cut.npy": "truncated",
        "text.txt": "text.txt", "cut.npz": "cut.npz", "absent.npy": "no such file", "two.npz": "holds a, b: name the array",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            ArraySet(tmp_path / name)
    assert len(ArraySet(tmp_path / "two.npz", key="b")) == 4
    with pytest.raises(ValueError, match="whole numbers from 256 to 256"):
        ArraySet(tmp_path / "large.npy").read(0, 1)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_value_in_an_archive_is_found(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "x.npz", images=pictures(5).numpy())
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz cannot be read, it is damaged"):
        ArraySet(tmp_path / "x.npz")


def test_an_unpacked_archive_goes_with_its_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    np.savez_compressed(tmp_path / "x.npz", images=pictures(5).numpy())
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    images = ArraySet(tmp_path / "x.npz")
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    del images
    assert not list((tmp_path / "scratch").iterdir())


def test_a_function_that_loses_images_is_refused() -> None:
    images = Mapped(InMemory(pictures(5)), lambda x: x[:1])
    with pytest.raises(ValueError, match="made 1 images of 4"):
        images.read(0, 4)
    with pytest.raises(ValueError, match="not images"):
        Mapped(InMemory(pictures(5)), lambda x: x.flatten(1))


# ------------------------------------------------------------------------------------------------------------------ features and moments


def test_batches_hold_what_extract_gives_them_and_blocks_do_not_depend_on_more() -> None:
    x, images = pictures(1203), Recorded(pictures(1203))
    for batch, block in ((1, 500), (100, 500), (300, 600), (10_000, 10_000)):
        images.reads.clear()
        assert torch.equal(set_features(NETWORK, images, batch_size=batch), extract(NETWORK, x, batch_size=batch))
        assert images.reads == [(a, min(a + block, 1203)) for a in range(0, 1203, block)]


def test_the_distance_does_not_depend_on_the_batch_size() -> None:
    real, other = pictures(1500), pictures(1500, seed=1).float().div(255).square()
    values = [float(frechet_distance(*(set_statistics(NETWORK, x, batch_size=b) for x in (other, real)))) for b in (1, 100, 10_000)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5), "the bound that set_features states"
    assert values[0] > 0


def test_statistics_are_those_of_all_features() -> None:
    extractor = Wrapped(lambda x: x.flatten(1)[:, :5] + 100, name="shifted", dim=5, version="1")
    for n in (1, 499, 4096, 9001):
        x = torch.rand(n, 1, 3, 3)
        stats, expected = set_statistics(extractor, x), FeatureStats.from_features(set_features(extractor, x))
        assert stats.n == n
        torch.testing.assert_close(stats.mean, expected.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(stats.scatter, expected.scatter, rtol=1e-10, atol=1e-10)
        if n <= 4096:
            assert torch.equal(stats.mean, expected.mean)
            assert torch.equal(stats.scatter, expected.scatter)
        other = set_statistics(extractor, x, batch_size=17)
        assert torch.equal(stats.scatter, other.scatter), "these features do not depend on the batch, so neither do the statistics"


def test_bad_arguments_are_refused_in_one_sentence(tmp_path: Path) -> None:
    x = torch.rand(4, 1, 8, 8)
    for call, error, sentence in (
        (lambda: set_features(NETWORK, x[:0]), ValueError, "images holds no images"),
        (lambda: set_features(NETWORK, x, batch_size=0), ValueError, "batch size"),
        (lambda: set_features(NETWORK, 1), TypeError, "must be a tensor"),  # type: ignore[arg-type]
        (lambda: set_features(NETWORK, x, out=tmp_path / "f.bin"), ValueError, ".npy"),
        (lambda: set_features(NETWORK, InMemory(x * 2, "mine")), ValueError, r"mine, images 0 to 3: float images must lie in \[0, 1\]"),
        (lambda: set_statistics(NETWORK, x[0]), ValueError, r"\(n, C, H, W\)"),
    ):
        with pytest.raises(error, match=sentence):
            call()


# ------------------------------------------------------------------------------------------------------------------ on disk


def test_features_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    x = pictures(1203)
    on_disk = set_features(NETWORK, x, out=tmp_path / "new" / "f.npy")
    assert torch.equal(on_disk, set_features(NETWORK, x))
    kept = np.load(tmp_path / "new" / "f.npy", allow_pickle=False)
    assert (kept.dtype, kept.shape) == (np.dtype("float32"), (1203, 128))
    on_disk.zero_()
    assert np.array_equal(np.load(tmp_path / "new" / "f.npy"), kept), "changes to the tensor must not reach the file"
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["f.npy"]
    assert float(frechet_distance(torch.from_numpy(kept), set_features(NETWORK, x))) == pytest.approx(0, abs=1e-9)


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    x, out, calls = pictures(1203), tmp_path / "f.npy", 0

    def tired(block: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:  # the shape took one
            raise KeyboardInterrupt
        return block

    with pytest.raises(KeyboardInterrupt):
        set_features(NETWORK, Mapped(InMemory(x), tired), out=out)
    assert list(tmp_path.iterdir()) == []
    set_features(NETWORK, x[:3], out=out)
    before, calls = out.read_bytes(), 0
    with pytest.raises(KeyboardInterrupt):
        set_features(NETWORK, Mapped(InMemory(x), tired), out=out)
    assert [f.name for f in tmp_path.iterdir()] == ["f.npy"]
    assert out.read_bytes() == before


def status(what: str) -> float:
    """VmRSS or VmHWM (its peak) of this process in MB; ``ru_maxrss`` would begin at the memory of the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def memory(folder: Path) -> None:
    """Run alone: how much memory (MB) streaming 138 MB of images into 120 MB of features takes, and holding the images."""
    path, shape = folder / "zeros.npy", (20_000, 3, 48, 48)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)))
    wide = Wrapped(lambda x: x.flatten(1)[:, :1500], name="many", dim=1500, version="1")
    narrow = Wrapped(lambda x: x.mean((2, 3)), name="means", dim=3, version="1")
    images, found = ArraySet(path), {}
    for name, call in {
        "statistics": lambda: set_statistics(narrow, images),
        "features": lambda: set_features(wide, images, out=folder / "f.npy"),
        "held": lambda: images.read(0, len(images)),
    }.items():
        before = status("VmRSS")
        kept = call()
        found[name] = status("VmHWM") - before
        del kept
    (folder / "memory.json").write_text(json.dumps(found))


# ------------------------------------------------------------------------------------------------------------------ several processes


def several(folder: Path, rank: int) -> None:
    """Process ``rank`` of three, and then of the first two, while the third measures its memory."""
    from torch import distributed as dist

    torch.set_num_threads(1)
    for world in (3, 2):
        if rank >= world:
            if Path("/proc/self/status").is_file():
                memory(folder)
            return
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{world}", rank=rank, world_size=world)
        np.savez(folder / f"{world}-{rank}.npz", **results(folder / f"shared{world}.npy"))
        said = {}
        for name, call in {
            "bad image": lambda: set_features(NETWORK, Mapped(InMemory(pictures(1203)), lambda x, r=rank: x if r == 0 else x.float())),
            "other images": lambda: set_features(NETWORK, pictures(10 + rank)),
            "no folder": lambda: set_features(NETWORK, pictures(10), out=folder / "file" / "f.npy"),
        }.items():
            try:
                call()
            except (ValueError, RuntimeError) as error:
                said[name] = f"{type(error).__name__}: {error}"
        said["alone"] = set_features(NETWORK, pictures(10 + rank), alone=True).shape[0]
        (folder / f"{world}-{rank}.json").write_text(json.dumps(said))
        dist.destroy_process_group()


def results(out: Path) -> dict[str, np.ndarray]:
    """What any number of processes must agree on; 1203 images are three blocks, the last one short."""
    x = pictures(1203)
    samples = Mapped(Generated(convolutional(), 1203, seed=2), lambda b: b.clamp(0, 1))
    stats, other = set_statistics(NETWORK, InMemory(x), batch_size=70), set_statistics(NETWORK, samples)
    found = {
        "features": set_features(NETWORK, x, batch_size=70).numpy(),
        "on disk": set_features(NETWORK, x, batch_size=70, out=out).numpy(),
        "few": set_features(NETWORK, x[:5]).numpy(),
        "mean": stats.mean.numpy(),
        "scatter": stats.scatter.numpy(),
        "distance": np.array(float(frechet_distance(other, stats))),
    }
    assert stats.n == 1203
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "file").write_text("no folder")
    workers = [start("several", folder, rank) for rank in range(3)]
    logs = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], "\n".join(logs)[-3000:]
    return folder


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(processes: Path, world: int, tmp_path: Path) -> None:
    expected = results(tmp_path / "f.npy")
    for rank in range(world):
        found = np.load(processes / f"{world}-{rank}.npz")
        for name, value in expected.items():
            assert np.array_equal(found[name], value), f"{name} in process {rank} of {world}"


@pytest.mark.parametrize("world", [2, 3])
def test_a_failure_in_one_process_ends_all(processes: Path, world: int) -> None:
    for rank in range(world):
        said = json.loads((processes / f"{world}-{rank}.json").read_text())
        last = {1: 999, 2: 1202}.get(rank)
        assert (f"images {500 * rank} to {last}: float images must lie" if rank else "process 1 failed") in said["bad image"]
        assert "given different images" in said["other images"]
        assert ("is a file" if rank == 0 else "process 0 failed") in said["no folder"]
        assert said["alone"] == 10 + rank


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account of memory")
def test_memory_does_not_grow_with_the_set(processes: Path) -> None:
    found = json.loads((processes / "memory.json").read_text())
    assert found["statistics"] < 60, found
    assert found["features"] < 60, found
    assert found["held"] > 130, "the measure must see what is really held"


def start(*arguments: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(HERE.parent / "src")}
    command = [sys.executable, str(HERE / "test_sets.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))
