"""A run that is SIGKILLed at random moments and resumed until done ends with the bits of an uninterrupted one.

The killed processes are forked by a server that has torch loaded, so that each costs milliseconds; ``benchmarks/resume_kills.py`` does
the same with fresh interpreters, two threads and a larger run.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time

import pytest

from expost.runs import recipes
from expost.system.files import load_tensors
from expost.train.folder import RunFolder
from runs import EVERYTHING, child, everything, recipe_run
from toys import bits, same

RECIPES = recipes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    m, objective, history = everything(folder, lambda step: None)
    return {**bits(m), **{f"critic.{k}": v for k, v in bits(objective.modules()["critic"]).items()}}, history, folder


def rows(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


def test_the_uninterrupted_run_uses_everything(uninterrupted):
    """Or the comparison would show little."""
    _, history, _ = uninterrupted
    lr = {row["lr"] for row in history.rows}
    assert len(lr) > 1, "the plateau schedule acted"
    assert 0 < history.best_step < EVERYTHING.steps, "the best weights are not the last"
    assert {"critic", "fool", "log_gamma"} <= set().union(*history.rows)


def test_killed_three_times_and_resumed_is_bit_identical(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server does not get sys.path
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    chance, kills, checkpoints = random.Random(0), 0, []
    folder = tmp_path / "run"
    while kills < 3:
        reached = context.Value("i", -1, lock=False)
        process = context.Process(target=child, args=(str(folder), reached))
        process.start()
        start = checkpoints[-1] if checkpoints else 0
        target = start + chance.randint(15, 40)
        deadline = time.monotonic() + 120
        while reached.value < target and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(chance.random() * 0.01)  # in the middle of a step, or of writing
        process.kill()
        process.join()
        assert process.exitcode == -9, "the process ended before it could be killed"
        kills += 1
        if (folder / "checkpoint.safetensors").exists():
            checkpoints.append(load_tensors(folder / "checkpoint.safetensors", "the checkpoint")[1]["step"])
        assert not (folder / "model.safetensors").exists()
    assert checkpoints
    assert 0 < checkpoints[0] < checkpoints[-1] < EVERYTHING.steps, "the run went on from its checkpoints"
    m, objective, history = everything(folder, lambda step: None, resume=True)
    reference, whole, before = uninterrupted
    ended = {**bits(m), **{f"critic.{k}": v for k, v in bits(objective.modules()["critic"]).items()}}
    assert same(ended, reference)
    assert rows(history) == rows(whole)
    assert (history.best_step, history.stopped) == (whole.best_step, whole.stopped)
    assert same(load_tensors(folder / "model.safetensors", "x")[0], bits(m))
    assert (folder / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes(), "the clock leaves no trace in it"
    assert RunFolder.at(folder).history().seconds == pytest.approx(history.seconds, abs=0.01)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_interrupted_in_every_way_is_bit_identical(tmp_path, name, monkeypatch):
    """SIGINT, SIGTERM, an exception and SIGKILL in turn, each after a checkpoint; then the rest."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    whole = recipe_run(name, None)
    folder = tmp_path / "run"

    def kept():
        return load_tensors(folder / "checkpoint.safetensors", "the checkpoint")[1]["step"]

    for at, (event, raised) in enumerate(((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, KeyboardInterrupt), (RuntimeError,) * 2), 2):
        with pytest.raises(raised):
            recipe_run(name, folder, {at: event})
        assert kept() == (at if raised is RuntimeError else at + 1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    process = context.Process(target=recipe_run, args=(name, folder, {5: signal.SIGKILL}))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert kept() == 5
    ended = recipe_run(name, folder)
    assert same(ended[0], whole[0])
    assert ended[1] == whole[1]
