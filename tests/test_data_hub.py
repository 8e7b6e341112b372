"""expost.data: the hub, without one. A web server, a deaf socket and a cache folder of the real library stand in for it."""

from __future__ import annotations

import http.server
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from expost.data import load
from expost.data import tables as hub

datasets = pytest.importorskip("datasets")

NOWHERE = "http://127.0.0.1:9"  # a port that refuses


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", NOWHERE)
    before = settings()
    yield
    assert settings() == before


def settings() -> tuple[object, ...]:
    return datasets.config.HF_HUB_OFFLINE, datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("name", "what"),
    [("mnist", '"ylecun/mnist"'), ("someone/pictures", r'"someone/pictures" \(and there is no such folder here\)')],
)
def test_unreachable_hub_is_one_sentence_within_seconds(name: str, what: str) -> None:
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=f"^cannot reach the hub for {what}: check the network, or give a local folder with path=... / --data FOLDER$"
    ):
        load(name)
    assert time.monotonic() - started < 10


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(hub, "reachable", lambda *_: pytest.fail("the hub was asked in offline mode"))
        with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set: unset it, or give a local folder"):
            load("mnist")
        assert datasets.config.HF_HUB_OFFLINE is True


def test_a_library_that_runs_the_scripts_of_data_sets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(ValueError, match="runs code that data sets bring"):
        load("someone/pictures")


def test_reachable() -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)  # any answer is an answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert hub.reachable(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert not hub.reachable(NOWHERE)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started = time.monotonic()
        assert not hub.reachable(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=0.3)
        assert time.monotonic() - started < 3


def in_library_cache(place: Path, repository: str, parts: dict[str, list[object]]) -> None:
    """What ``datasets`` leaves behind after it has downloaded and prepared ``repository``."""
    from datasets import ClassLabel, Features, Image, Value
    from datasets.arrow_writer import ArrowWriter

    owner, name = repository.split("/")
    folder = place / f"{owner}___{name}" / "default" / "0.0.0" / "abc123"
    folder.mkdir(parents=True)
    features = Features({"id": Value("int64"), "image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    splits = {}
    for part, rows in parts.items():
        with ArrowWriter(path=str(folder / f"{name}-{part}.arrow"), features=features) as writer:
            for i, row in enumerate(rows):
                writer.write({"id": i, "image": {"bytes": row, "path": None}, "label": i % 10})
            writer.finalize()
        splits[part] = {"name": part, "num_examples": len(rows), "num_bytes": 1, "dataset_name": name}
    info = {
        "features": features.to_dict(),
        "splits": splits,
        "config_name": "default",
        "dataset_name": name,
        "version": {"version_str": "0.0.0"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_what_the_library_has_cached_works_offline_and_then_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    x = np.random.default_rng(0).integers(0, 256, (26, 4, 4), dtype=np.uint8)
    encoded: list[object] = []
    for picture in x:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        encoded.append(stream.getvalue())
    in_library_cache(tmp_path / "hf", "ylecun/mnist", {"train": encoded[:20], "test": encoded[20:]})
    found = load("mnist")
    assert np.array_equal(found.train.x[:, 0].numpy(), x[:18])
    assert np.array_equal(found.val.x[:, 0].numpy(), x[18:20])
    assert np.array_equal(found.test.x[:, 0].numpy(), x[20:])
    assert found.train.labels.tolist() == [i % 10 for i in range(18)]
    assert any("Hugging Face cache" in note for note in found.notes)
    assert capfd.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "datasets", None)  # from here on it cannot be imported
    assert load("mnist").hash == found.hash
    with pytest.raises(ValueError, match=r'datasets, which is not installed: pip install "expost\[data\]"'):
        load("someone/pictures")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("gone"), r'cannot reach the hub for "someone/pictures" .*: check the network'),
        (datasets.exceptions.DatasetNotFoundError("no"), r'no folder "someone/pictures" here and no such data set on the hub'),
        (RuntimeError("first\nsecond"), r'"someone/pictures" cannot be loaded \(RuntimeError: first second\): give a local folder'),
    ],
)
def test_a_hub_that_answers_and_then_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr(hub, "reachable", lambda _: True)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=message):
        load("someone/pictures")
