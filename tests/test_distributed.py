"""Two processes on the CPU, started by torchrun as a user would: the losses of one process, and agreement on every decision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import expost
from expost import heads
from expost.runs import load_run
from expost.train.settings import Training
from runs import SHARED, deterministic, summary
from toys import bits, model, same, vectors

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> tuple[Path, list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    """Where two processes worked, what each ended with, and what they printed together."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "src")]),
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HERE / "runs.py"), "distributed"]
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)], done


@pytest.fixture(scope="module")
def two(launched) -> list[dict[str, Any]]:
    return launched[1]


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
    monkeypatch.setattr(expost.train.fit, "Processes", lambda: SimpleNamespace(rank=0, world=2))
    with pytest.raises(ValueError, match="the batch of 9 cannot be shared by 2 processes: choose a multiple of 2"):
        expost.fit(model(heads.Dirac()), expost.RAE(), vectors(9), training=Training(steps=1, batch_size=9), device="cpu")


def test_commands_print_once_write_once_and_fail_once(launched):
    folder, ended, done = launched
    out = folder / "commands" / "run"
    assert ended[0]["commands"] == [0, 0, 0, 0, 2, 0, 2, 2, 1]
    assert ended[1]["commands"] == [0, 0, 0, 0, 1, 0, 2, 0, 2]
    for said in (f"wrote {out}\n", "Densities on the codes", "wrote 4 samples", "samples stage ", "is already finished"):
        assert done.stdout.count(said) == 1, said
    for said in ("already holds a finished run", "nothing to write", "process 1 has no disk", "Missing argument"):
        assert done.stderr.count(said) == 1, said
    assert done.stderr.count("expost: ") == 3
    assert "Warning" not in done.stderr
    run = load_run(out, device="cpu")
    stage = bits(run.density("stage"))
    assert same(stage, bits(run.density("stage", refit=True))), "a density that is trained is that of one process"


def test_torchrun_takes_n_from_us():
    """Its parser reads --n as an abbreviation of its own options."""
    from torch.distributed.run import parse_args

    for words in (["expost", "evaluate", "RUN", "-n", "60"], ["--", "expost", "evaluate", "RUN", "--n", "60"]):
        found = parse_args(["--nproc-per-node", "2", "-m", *words])
        assert [found.training_script, *found.training_script_args] == [word for word in words if word != "--"]
