"""The training of the default classifier: what it says, when it stops, and that it goes on where it was left. Features: test_features."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expost.evaluate.features import classifier_training
from expost.evaluate.features.classifier import Recipe, TrainedClassifier, classifier_extractor
from expost.evaluate.features.classifier_training import Training, _may_have_risen
from expost.seeds import seeded
from expost.system.files import load_tensors, save_tensors
from expost.system.progress import speaking

#: 100 images in batches of 15: 90 are trained on, 10 held out, 12 steps.
SMALL = Recipe(epochs=2, batch=15, width=4, dim=8, shift=1)


def pictures(n: int, classes: int = 4, side: int = 8) -> tuple[Tensor, Tensor]:
    """Noise on a brightness that tells the class; sorted by class."""
    y = (torch.arange(n) * classes // n).long()
    noise = torch.randint(40, (n, 1, side, side), generator=torch.Generator().manual_seed(n))
    return (noise + y[:, None, None, None] * 200 // classes).to(torch.uint8), y


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred images are enough to hold some out; looks at steps 2, 3, 4, 5, 7 and 8."""
    monkeypatch.setattr(classifier_training, "FEWEST", 100)
    monkeypatch.setattr(classifier_training, "FIRST", 30)


def trained(cache: Path, recipe: Recipe = SMALL, n: int = 100) -> TrainedClassifier:
    return classifier_extractor("p", *pictures(n), *pictures(40), recipe=recipe, cache=cache)


def at(step: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something when so many steps have been made."""
    one = Training._one_step

    def stepping(self: Training) -> None:
        if self.step == step:
            act()
        one(self)

    monkeypatch.setattr(Training, "_one_step", stepping)


def files(cache: Path) -> list[str]:
    return sorted(file.name for file in (cache / "classifiers").iterdir())


@pytest.mark.parametrize(("how", "stops"), [("SIGINT", False), ("SIGTERM", True), ("error", True)])
def test_an_interrupted_training_ends_with_the_same_bits(
    how: str, stops: bool, judged: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_training, "TOLERANCE", 0.5 if stops else 0.0)
    whole = trained(tmp_path / "whole")
    assert whole.record["passes"] == (15 * 11 if stops else 15 * 12)  # turned after step 7
    assert [name.count(".training") for name in files(tmp_path / "whole")] == [0]

    def fail() -> None:
        raise RuntimeError("killed")

    def signalled() -> None:
        os.kill(os.getpid(), signal.Signals[how])

    for step in (0, 3, 6, 8):
        with monkeypatch.context() as patch:
            patch.setattr(classifier_training, "KEEP", 0.0 if how == "error" else 1e9)
            at(step, fail if how == "error" else signalled, patch)
            with pytest.raises(RuntimeError if how == "error" else KeyboardInterrupt) as raised:
                trained(tmp_path / "parts")
            if how != "error":  # the step is made, and said
                assert str(raised.value) == f"at step {step + 1} of {11 if stops and step > 3 else 12} of the classifier, which is kept"
            assert [name.count(".training") for name in files(tmp_path / "parts")] == [1] * (how != "error" or step > 0)
    steps: list[None] = []
    at(5, lambda: steps.append(None), monkeypatch)
    resumed = trained(tmp_path / "parts")
    assert (resumed.hash, resumed.accuracy, resumed.record["passes"]) == (whole.hash, whole.accuracy, whole.record["passes"])
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert not steps, "it began again"


def test_what_is_restored_is_what_was_left(judged: None, tmp_path: Path) -> None:
    found = []
    for again in (False, True):
        with seeded("same"):
            training = Training(*pictures(100), 4, SMALL, file=tmp_path / "state.safetensors", key="k")
        if not again:
            with pytest.raises(KeyboardInterrupt):
                training.run(iter([False] * 5 + [True]).__next__)
        moments = [value for p in training.parameters for _, value in sorted(training.optimiser.state[p].items())]
        found.append([*training.network.state_dict().values(), *training.average, *moments, *training.right])
    assert len(found[0]) == len(found[1])
    for left, restored in zip(*found, strict=True):
        assert torch.equal(left, restored)
        if left.dim() == 4:
            last = [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (left, restored)]
            assert last == [True, True], "memory is laid out otherwise"


def test_a_state_that_cannot_be_used_is_not(judged: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tmp_path / "whole").hash
    at(9, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(classifier_training, "FEWEST", 100)
    monkeypatch.setattr(classifier_training, "FIRST", 30)
    (file,) = (tmp_path / "classifiers").iterdir()
    good, (tensors, state) = file.read_bytes(), load_tensors(file, "a state")
    began: list[int] = []
    run = Training.run
    monkeypatch.setattr(Training, "run", lambda self, *a: (began.append(self.step), run(self, *a))[1])
    broken = {
        "good": good,
        "cut": good[: len(good) // 2],
        "a bit": good[:-100] + bytes([good[-100] ^ 1]) + good[-99:],
        "another key": (tensors, state | {"key": "other"}),
        "beyond the end": (tensors, state | {"step": 10_000}),
        "another type": (tensors, state | {"step": "9"}),
        "other weights": (tensors | {"model/head.bias": torch.zeros(7)}, state),
        "fewer moments": ({k: v for k, v in tensors.items() if k != "optimiser/3/exp_avg"}, state),
        "other moments": (tensors | {"optimiser/3/exp_avg": torch.zeros(7)}, state),
        "other averages": ({k: v for k, v in tensors.items() if k != "average/head.bias"}, state),
        "other answers": (tensors | {"right": torch.zeros(2, 3, dtype=torch.uint8)}, state),
    }
    for name, content in broken.items():
        for other in (tmp_path / "classifiers").iterdir():
            other.unlink()
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            save_tensors(file, *content)
        assert trained(tmp_path).hash == whole, name
        assert began.pop() == (10 if name == "good" else 0), name


def test_an_easy_set_is_learned_in_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier_training, "FIRST", 1000)
    easy, (x, y) = Recipe(epochs=4, batch=64, width=4, dim=8, shift=1), pictures(4000, classes=2, side=4)
    with seeded("easy"):
        training = Training(x, y, 2, easy)
        training.run()
    assert training.passes < training.total * training.batch * 0.75
    assert training.checks[max(training.checks)] == 1
    assert training.rate(training.end - 1) < easy.rate / 20  # it ends with a rate that has fallen


@pytest.mark.parametrize(
    ("gained", "lost", "of", "may"),
    [
        pytest.param(0, 0, 400, False, id="no change among enough images"),
        pytest.param(0, 0, 150, True, id="no change among few: one would be more than the tolerance"),
        pytest.param(20, 5, 2000, True, id="a rise"),
        pytest.param(5, 20, 2000, False, id="a fall"),
        pytest.param(8, 8, 2000, False, id="no rise, and its error within the tolerance"),
        pytest.param(80, 80, 2000, True, id="no rise, but many changes"),
    ],
)
def test_a_rise_must_be_excluded(gained: int, lost: int, of: int, may: bool) -> None:
    before, now = torch.zeros(2, of, dtype=torch.uint8)
    now[:gained], before[-lost or of :] = 1, 1
    assert _may_have_risen(before, now) == may


def test_the_held_out_part_is_drawn_and_not_trained_on(judged: None) -> None:
    x, y = pictures(200)  # sorted by class: a cut would hold one of them out
    parts = []
    for seed in (0, 1):
        with seeded("held"):
            training = Training(x, y, 4, Recipe(epochs=4, batch=15, width=4, dim=8, seed=seed))
        assert len(training.held) == 20
        assert len(y[training.held].unique()) == 4
        assert sorted([*training.held.tolist(), *training.rows.tolist()]) == list(range(200))
        training._one_step()
        assert set(training.order[1].tolist()) == set(training.rows.tolist())
        training.step = training.total - 1
        training._one_step()
        assert set(training.order[1].tolist()) == set(range(200)), "decided: all may be learned"
        parts.append(training.held.tolist())
    assert parts[0] != parts[1]
    with seeded("held"):
        assert not len(Training(x, y, 4, Recipe(epochs=0.5)).held), "nothing is held out where it could not shorten the training"


def test_test_images_play_no_part(judged: None, tmp_path: Path) -> None:
    (x, y), (other, labels) = pictures(40), pictures(60)
    hashes = {
        classifier_extractor("p", *pictures(100), *test, recipe=SMALL, cache=tmp_path).hash for test in ((x, y), (other, labels.flip(0)))
    }
    assert len(hashes) == 1


def test_it_says_once_what_it_costs(
    judged: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EXPOST_QUIET", raising=False)
    monkeypatch.setattr(classifier_training, "TOLERANCE", 0.0)
    at(6, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    where = f"; kept in {tmp_path / 'classifiers'}, and Ctrl-C keeps what is done for the next time"
    with speaking("evaluate"):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("training classifier-p, once for these data: at most ")
        assert said.endswith(f" (180 image passes or fewer){where}")
        monkeypatch.setattr(os, "access", lambda *_: False)
        trained(tmp_path)
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("training classifier-p goes on at step 7 of 12: at most ")
        assert said.endswith(" (180 image passes or fewer)")  # nothing is promised that cannot be kept
        trained(tmp_path)
        assert capsys.readouterr().err == ""  # it is there
    trained(tmp_path, Recipe(epochs=1, batch=15, width=4, dim=8))
    assert capsys.readouterr().err == ""  # called from Python


def test_several_processes_train_one(tmp_path: Path) -> None:
    """Run as a script below: both are interrupted by a signal to the second, then go on; the cache is the first one's alone."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "WORLD_SIZE": "2"}
    run = [[sys.executable, __file__, str(tmp_path), str(rank)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank, command in enumerate(run)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["ends"] == second["ends"] == ["KeyboardInterrupt", "ValueError/OtherFailed", "hash"]
    assert first["hash"] == second["hash"] == trained(tmp_path / "alone").hash
    assert (first["steps"] >= 12, second["steps"]) == (True, 0)
    assert first["features"] == second["features"]


def _together(folder: Path, rank: int) -> None:
    from torch import distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    steps, ends, one = [0], list[str](), Training._one_step

    def stepping(self: Training) -> None:
        one(self)
        steps[0] += 1
        if len(ends) == 1:
            raise ValueError("no disk")
        while not ends and self.step == 3 and not (folder / "sent").exists():
            time.sleep(0.01)

    Training._one_step = stepping  # type: ignore[method-assign]
    if rank == 1:
        before = signal.getsignal(signal.SIGINT)

        def send() -> None:
            while signal.getsignal(signal.SIGINT) is before:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            (folder / "sent").touch()

        threading.Thread(target=send).start()
    for _ in range(3):
        try:
            found = trained(folder / str(rank))
            ends.append("hash")
        except BaseException as error:
            name = type(error).__name__
            ends.append("ValueError/OtherFailed" if name == ("OtherFailed" if rank else "ValueError") else name)
    assert (folder / str(rank) / "classifiers").is_dir()
    assert len(list((folder / str(rank) / "classifiers").iterdir())) == (rank == 0)
    features = found(pictures(20)[0]).sum().item()
    (folder / f"{rank}.json").write_text(json.dumps({"hash": found.hash, "ends": ends, "steps": steps[0], "features": features}))
    dist.destroy_process_group()


if __name__ == "__main__":
    _together(Path(sys.argv[1]), int(sys.argv[2]))
