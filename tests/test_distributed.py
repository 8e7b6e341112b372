"""Two processes on the CPU, started by torchrun as a user would: the losses of one process, and agreement on every decision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

import expost
from expost import heads
from expost.training import Training
from runs import SHARED, deterministic, summary
from toys import model, vectors

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes ended with."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "src")]),
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HERE / "runs.py"), "distributed"]
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return summary(*deterministic())


@pytest.mark.parametrize("what", ["deterministic", "resumed", "everything", "one-sided"])
def test_processes_end_with_the_same_model(two, what):
    assert two[0][what]["weights"] == two[1][what]["weights"]
    assert two[0][what]["best_step"] == two[1][what]["best_step"]
    assert two[0][what]["stopped"] == two[1][what]["stopped"]


def test_losses_are_those_of_one_process(two, one):
    rows, expected = two[0]["deterministic"]["rows"], one["rows"]
    assert [(r["step"], r["split"]) for r in rows] == [(r["step"], r["split"]) for r in expected]
    assert len(rows) >= SHARED.steps
    for name in ("total", "distortion", "embedding"):
        assert [r[name] for r in rows] == pytest.approx([r[name] for r in expected], rel=1e-5)
    assert two[0]["deterministic"]["weights"] == pytest.approx(one["weights"], rel=1e-4, abs=1e-5)


def test_an_interrupt_seen_by_one_process_stops_both_and_the_run_resumes(two):
    for result in two:
        assert result["interrupted"]
        assert result["checkpoint"]
    whole, resumed = two[0]["deterministic"], two[0]["resumed"]
    assert resumed["weights"] == whole["weights"], "bit for bit, also with two processes"
    assert resumed["rows"] == whole["rows"]
    assert resumed["stopped"] == "finished"


def test_a_critic_batch_statistics_plateau_and_best_weights_work_together(two):
    result = two[0]["everything"]
    assert result["stopped"] == "finished"
    assert torch.tensor(result["weights"]).isfinite().all()
    rows = [[{k: v for k, v in row.items() if k != "log_gamma"} for row in each["everything"]["rows"]] for each in two]
    assert rows[0] == rows[1], "validation losses, learning rates and all"


def test_a_loss_that_overflows_in_one_process_stops_both(two):
    assert two[0]["one-sided"]["stopped"].startswith("non-finite loss at step 7")
    assert two[0]["one-sided"]["best_step"] == 4


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(accelerate.Accelerator, "num_processes", property(lambda self: 2))
    with pytest.raises(ValueError, match="the batch of 9 cannot be shared by 2 processes: choose a multiple of 2"):
        expost.fit(model(heads.Dirac()), expost.RAE(), vectors(9), training=Training(steps=1, batch_size=9), device="cpu")
