"""Sweeps: which runs they are, that each is trained once, survives its end and is told apart from the others, here and on a (fake) cluster."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch import nn

from expost.cli import main
from expost.runs.lab import Lab
from expost.runs.sweep import lock, worker
from expost.runs.sweep.batch import Outcome, run_jobs
from expost.runs.sweep.jobs import Job, ending, expand, parse_axis, state
from expost.runs.sweep.pool import Local, Slurm
from expost.runs.sweep.table import figures, seed_table, sweep_table, varying
from expost.system.files import load_tensors
from expost.train.folder import RunFolder
from expost.train.history import History

RECIPE = "ghosh2020/vae"
SMALL = {"network": "mlp", "latent": 2, "training.steps": 4}


def jobs_of(root: Path, **other) -> list[Job]:
    return expand([RECIPE], ["digits"], root=root, budget="smoke", **{"settings": SMALL, **other})


def finish(folder: Path, stopped: str = "finished") -> None:
    """What the end of a training leaves, without the training."""
    history = History([{"step": 1, "epoch": 1.0, "split": "val", "seconds": 0.1, "lr": 0.1, "total": 3.5}], stopped, 1, 0.1, 64)
    RunFolder.at(folder).save_model(nn.Linear(1, 1), {"history": history.to_json()})


# -- which runs ------------------------------------------------------------------------------------------------------------------------------


def test_a_sweep_is_a_product_in_order(tmp_path: Path) -> None:
    cases, grid = [{"network": "mlp", "latent": 2}, {"network": "small", "latent": 4}], {"training.lr": [1e-3, 1e-4]}
    jobs = expand([RECIPE, "ghosh2020/rae"], ["digits"], root=tmp_path, budget="smoke", cases=cases, grid=grid, seeds=(0, 5))
    assert len(jobs) == 2 * 2 * 2 * 2
    assert len({job.folder for job in jobs}) == len(jobs)
    assert [(job.recipe, job.settings["latent"], job.settings["training.lr"], job.seed) for job in jobs[:4]] == [
        (RECIPE, 2, 1e-3, 0),
        (RECIPE, 2, 1e-3, 5),
        (RECIPE, 2, 1e-4, 0),
        (RECIPE, 2, 1e-4, 5),
    ]
    assert varying(jobs) == ["network", "latent", "training.lr"]
    assert Job.from_json(json.loads(json.dumps(jobs[3].to_json()))) == jobs[3]


def test_runs_lie_where_the_lab_looks_for_them(tmp_path: Path) -> None:
    settings = {**SMALL, "training.betas": (0.8, 0.99)}
    (job,) = jobs_of(tmp_path, settings=settings, seeds=(3,))
    assert worker.work(job, "first", "cpu", False) == 0
    said: list[str] = []
    run = Lab("digits", "smoke", tmp_path, seed=3, device="cpu", say=said.append).run(RECIPE, settings)
    assert run.folder is not None
    assert run.folder.path == job.folder
    assert not said, "the lab trained it again"
    assert [path.name for path in tmp_path.iterdir()] == [job.name]


AXES = {
    "latent=8,16,32": ("latent", [8, 16, 32]),
    "network=mlp, small": ("network", ["mlp", "small"]),
    "training.betas=(0.9,0.99),[0.5,0.9]": ("training.betas", [(0.9, 0.99), [0.5, 0.9]]),
    "training.clip=none,1": ("training.clip", [None, 1]),
    "network='a,b',c": ("network", ["a,b", "c"]),
    "training.lr=1e-3": ("training.lr", [1e-3]),
}


@pytest.mark.parametrize("text", AXES)
def test_axes(text: str) -> None:
    assert parse_axis(text) == AXES[text]


@pytest.mark.parametrize("text", ["latent", "=1,2", "latent=", "latent=1,,2", "latent=1,", "a=(1,2", "a='1,2", "a=1),2"])
def test_axes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse_axis(text)


def test_mistakes_are_found_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same run twice"):
        jobs_of(tmp_path, grid={"training.lr": [1e-3, 0.001]})
    with pytest.raises(ValueError, match="same run twice"):
        jobs_of(tmp_path, grid={"training.minutes": [1, 2]})  # a time limit does not make another experiment
    with pytest.raises(ValueError, match="an axis of the grid and a setting"):
        jobs_of(tmp_path, grid={"latent": [1, 2]})
    with pytest.raises(ValueError, match="in a case and for all"):
        jobs_of(tmp_path, cases=[{"latent": 3}])
    with pytest.raises(ValueError, match="no network"):
        jobs_of(tmp_path, settings={}, grid={"network": ["mlp", "nosuch"]})
    with pytest.raises(ValueError, match="did you mean"):
        jobs_of(tmp_path, settings={"training.lrr": 1})
    with pytest.raises(ValueError, match="has no values"):
        jobs_of(tmp_path, seeds=())
    assert not list(tmp_path.iterdir())


# -- one run ---------------------------------------------------------------------------------------------------------------------------------


def test_a_worker_reports_every_way_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = jobs_of(tmp_path)
    assert state(job.folder) == "new"

    def interrupted(*a: object, **k: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker, "train_run", interrupted)
        assert worker.work(job, "a", "cpu", False) == 130
    assert worker.read_report(job.folder, "a")["status"] == "interrupted"

    def broken(*a: object, **k: object) -> None:
        raise RuntimeError("the lights\nwent out")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "train_run", broken)
        assert worker.work(job, "b", "cpu", False) == 1
    assert worker.read_report(job.folder, "a") is None, "another attempt's report is not its own"
    assert worker.read_report(job.folder, "b")["message"] == "RuntimeError: the lights went out"
    assert "Traceback" in capsys.readouterr().err

    with lock.hold(job.folder):
        assert worker.work(job, "c", "cpu", False) == worker.LOCKED
    assert worker.read_report(job.folder, "c") is None

    assert worker.work(job, "d", "cpu", False) == 0
    assert worker.work(job, "e", "cpu", False) == 0, "what is done is loaded"
    assert worker.read_report(job.folder, "e")["status"] == "done"
    assert state(job.folder) == "done"
    assert lock.holder(job.folder) is None

    moved = Job(**{**vars(job), "folder": tmp_path / "other"})
    assert worker.work(moved, "f", "cpu", False) == 1
    assert "has changed" in worker.read_report(moved.folder, "f")["message"]


def test_a_diverged_run_is_trained_again_only_if_asked_to(tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path, settings={**SMALL, "training.lr": 1e12, "training.clip": None})
    assert worker.work(job, "a", "cpu", False) == 1
    assert "non-finite loss" in worker.read_report(job.folder, "a")["message"]
    assert state(job.folder) == "diverged"

    def never(*a: object, **k: object) -> list[str]:
        raise AssertionError("nothing is to be started")

    (outcome,) = run_jobs([job], Local(1), command=never)
    assert outcome.status == "failed"
    assert "non-finite loss" in outcome.message
    before = (job.folder / "model.safetensors").stat().st_mtime_ns
    assert worker.work(job, "b", "cpu", True) == 1, "it diverges again"
    assert (job.folder / "model.safetensors").stat().st_mtime_ns > before
    seen: list[bool] = []

    def again(job: Job, attempt: str, *, device: str | None, again: bool) -> list[str]:
        seen.append(again)
        return ["false"]

    (outcome,) = run_jobs([job], Local(1), retry_diverged=True, command=again)
    assert seen == [True]
    assert outcome.message == "exit status 1"


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path: Path) -> None:
    assert lock.holder(tmp_path) is None
    with lock.hold(tmp_path) as locks:
        assert locks
        assert f"process {os.getpid()} on " in (lock.holder(tmp_path) or "")
        with pytest.raises(lock.Locked, match=f"trained by process {os.getpid()}"), lock.hold(tmp_path):
            pass
        assert lock.holder(tmp_path), "the loser has not taken the lock away"
    assert not list(tmp_path.iterdir())
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('{}', file=f, flush=True); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-S", "-c", code, str(tmp_path / lock.NAME)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert lock.holder(tmp_path) == "another process"
        process.kill()
    assert lock.holder(tmp_path) is None, "the system has released it"
    with lock.hold(tmp_path):
        assert lock.holder(tmp_path)


def test_only_one_of_many_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    """Holders remove the file while others wait for it: none may hold a file that has lost its name."""
    inside, most, entered = [0], [0], [0]

    def enter() -> None:
        for _ in range(60):
            try:
                with lock.hold(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    entered[0] += 1
                    time.sleep(0.0005)
                    inside[0] -= 1
            except lock.Locked:
                pass

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert entered[0] > 10


def test_without_locks_training_goes_on_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import errno
    import fcntl

    def none(*a: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    (job,) = jobs_of(tmp_path)
    assert worker.work(job, "a", "cpu", False) == 0
    assert "has no locks" in capsys.readouterr().out
    assert lock.holder(job.folder) is None


# -- many runs, with commands that do not train ------------------------------------------------------------------------------------------------


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A folder with the weights of a run that ended well."""
    finish(tmp_path / "ended")
    return tmp_path / "ended"


def saying(job: Job, attempt: str, status: str, message: str = "") -> str:
    report = shlex.quote(json.dumps({"attempt": attempt, "status": status, "message": message}))
    return f"echo {report} > {job.folder}/sweep.json"


def test_failures_of_all_kinds_do_not_stop_the_others(tmp_path: Path, ended: Path) -> None:
    jobs = jobs_of(tmp_path / "lab", seeds=range(6))
    finish(jobs[5].folder)

    def command(job: Job, attempt: str, *, device: str | None, again: bool) -> list[str]:
        done = f"cp {ended}/model.safetensors {job.folder}; {saying(job, attempt, 'done')}"
        failed = f"echo Traceback; {saying(job, attempt, 'failed', 'no memory')}; exit 1"
        kinds = {0: done, 1: failed, 2: "kill -9 $$", 3: "exit 7", 4: f"echo $OMP_NUM_THREADS; {done}"}
        return ["/bin/sh", "-c", kinds[job.seed]] if job.seed != 3 else ["/nonexistent/program"]

    said: list[str] = []
    outcomes = run_jobs(jobs, Local(2, threads=3, poll=0.01), say=said.append, command=command)
    assert [o.job for o in outcomes] == jobs
    assert [o.status for o in outcomes] == ["done", "failed", "failed", "failed", "done", "skipped"]
    messages = [o.message for o in outcomes]
    assert messages[1] == "no memory"
    assert messages[2] == "killed by SIGKILL (is there enough memory?)"
    assert "cannot be started" in messages[3]
    assert outcomes[0].figures["total"] == 3.5
    assert not outcomes[1].figures
    assert (jobs[4].folder / "sweep.log").read_text() == "3\n"
    assert "    Traceback" in said
    assert said[0] == "6 runs, 5 of them to be trained"

    again = run_jobs(
        jobs, Local(2, poll=0.01), command=lambda job, attempt, **k: ["/bin/sh", "-c", command(job, attempt, **k)[-1] and "exit 1"]
    )
    assert [o.status for o in again] == ["skipped", "failed", "failed", "failed", "skipped", "skipped"], "what failed was tried again"

    table = sweep_table(outcomes)
    assert table.columns == ("seed", "status", "seconds", "total", "encoder parameters", "decoder parameters", "run")
    assert table.column("total") == [3.5, None, None, None, 3.5, 3.5]
    assert any("failed: no memory" in note for note in table.notes)


def test_a_run_that_its_time_limit_stopped_is_marked_and_goes_on(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, settings={**SMALL, "training.minutes": 1e-9}, seeds=range(2))
    for job in jobs:
        assert worker.work(job, "a", "cpu", False) == 0
        assert (worker.read_report(job.folder, "a")["status"], state(job.folder)) == ("stopped", "unfinished")
    again = run_jobs(
        jobs, Local(2, poll=0.01), command=lambda job, attempt, **k: ["/bin/sh", "-c", saying(job, attempt, "stopped", "time")]
    )
    assert [o.status for o in again] == ["stopped"] * 2
    table = sweep_table(again)
    assert table.column("status") == ["stopped"] * 2
    assert [note for note in table.notes if "goes on" in note] == [
        f"{job.name} was stopped by its time limit: the same sweep goes on with it" for job in jobs
    ]
    assert seed_table(again) is None, "means are of runs that were trained to their end"
    unlimited = jobs_of(tmp_path, settings=SMALL, seeds=range(2))
    assert [job.folder for job in unlimited] == [job.folder for job in jobs]
    assert worker.work(unlimited[0], "b", "cpu", False) == 0
    assert [state(job.folder) for job in unlimited] == ["done", "unfinished"]


def test_a_place_that_cannot_be_written_is_said_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, started = jobs_of(tmp_path / "lab", seeds=range(2)), list[str]()
    finish(jobs[0].folder)
    with monkeypatch.context() as patch:
        patch.setattr("expost.system.files.os.access", lambda *a: False)
        with pytest.raises(ValueError, match=r"sweep\.log cannot be written, because .* is read-only: choose another folder"):
            run_jobs(jobs, Local(1, poll=0.01), command=lambda job, attempt, **k: started.append(attempt) or ["/bin/false"])
        assert [o.status for o in run_jobs(jobs[:1], Local(1, poll=0.01))] == ["skipped"], "nothing is to be written"
    assert not started


def test_no_more_processes_than_allowed_and_gpus_in_turn(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path / "lab", seeds=range(5))
    here = tmp_path / "here"
    here.mkdir()

    def command(job: Job, attempt: str, **_: object) -> list[str]:
        text = f"touch {here}/{job.seed}; ls {here} | wc -l; echo $CUDA_VISIBLE_DEVICES; sleep 0.05; rm {here}/{job.seed}; exit 1"
        return ["/bin/sh", "-c", text]

    run_jobs(jobs, Local(2, gpus=("4", "6"), poll=0.01), command=command)
    said = [(job.folder / "sweep.log").read_text().split() for job in jobs]
    assert {int(number) for number, _ in said} <= {1, 2}
    assert {gpu for _, gpu in said} == {"4", "6"}
    assert Local(gpus=("0", "1", "2")).processes == 3
    for wrong in ({"processes": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match="at least one"):
            Local(**wrong)


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, seeds=(0, 1))
    started: list[int] = []

    def command(job: Job, attempt: str, **_: object) -> list[str]:
        started.append(job.seed)
        return ["false"]

    held, release = threading.Event(), threading.Event()

    def other() -> None:
        with lock.hold(jobs[0].folder):
            held.set()
            release.wait(10)
            finish(jobs[0].folder)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(10)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("waiting"):
            release.set()

    outcomes = run_jobs(jobs, Local(1, poll=0.01), say=say, command=command)
    thread.join()
    assert [o.status for o in outcomes] == ["skipped", "failed"]
    assert started == [1], "it was not trained twice"
    assert any(f"process {os.getpid()}" in text for text in said)


def test_a_lost_race_for_the_lock_is_run_again(tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path)
    codes = iter([worker.LOCKED, worker.LOCKED, 9])
    (outcome,) = run_jobs([job], Local(1, poll=0.01), command=lambda *a, **k: ["/bin/sh", "-c", f"exit {next(codes)}"])
    assert outcome.message == "exit status 9"


def test_ctrl_c_asks_the_running_and_drops_the_waiting(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, seeds=(0, 1, 2))

    def command(job: Job, attempt: str, **_: object) -> list[str]:
        report = json.dumps({"attempt": attempt, "status": "interrupted", "message": "kept"})
        code = (
            "import signal, sys, time\n"
            f"def end(*a): open({str(job.folder / 'sweep.json')!r}, 'w').write({report!r}); sys.exit(130)\n"
            "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(30)"
        )
        return [sys.executable, "-S", "-c", code] if job.seed == 0 else ["sleep", "30"]

    def interrupt() -> None:
        log = jobs[0].folder / "sweep.log"
        while not log.is_file() or "ready" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    start = time.monotonic()
    outcomes = run_jobs(jobs, Local(2, poll=0.01), command=command)
    assert time.monotonic() - start < 10
    assert [o.status for o in outcomes] == ["interrupted"] * 3
    assert [o.message for o in outcomes] == ["kept", "stopped before training went on", "not started"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path)

    def interrupt() -> None:
        while not (job.folder / "sweep.log").is_file() or not (job.folder / "sweep.log").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    deaf = "trap '' TERM; echo $$; exec sleep 30"
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], Local(1, poll=0.01), command=lambda *a, **k: ["/bin/sh", "-c", deaf])
    with pytest.raises(ProcessLookupError):
        os.kill(int((job.folder / "sweep.log").read_text()), 0)


def test_figures(tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path)
    assert worker.work(job, "a", "cpu", False) == 0
    folder = RunFolder.at(job.folder)
    folder.add_results("likelihood v1.0", {"name": "log p(x)", "value": -3.25, "details": {"bits/dim": 2.0}})
    names = ("total", "rate", "training.images", "likelihood v1.0", "likelihood v1.0.details.bits/dim", "nosuch", "training.stopped")
    found = figures(job, names)
    history = ending(job.folder)
    assert history is not None
    assert found["total"] == history.last("total", "val")
    assert found["training.images"] == 4 * 64
    assert found["likelihood v1.0"] == -3.25
    assert found["likelihood v1.0.details.bits/dim"] == 2.0
    assert not {"nosuch", "training.stopped"} & found.keys()
    # one hidden layer of 512 on 64 pixels; two outputs per code: mean and scale; one variance or none at the decoder
    assert found["encoder parameters"] == 64 * 512 + 512 + 512 * 4 + 4
    assert found["decoder parameters"] - (2 * 512 + 512 + 512 * 64 + 64) in (0, 1)
    table = sweep_table([Outcome(job, "done", 1.0, "finished", found)], names)
    assert any('no run has a measure "nosuch"' in note for note in table.notes)
    folder.results_file.write_text("{")
    assert "total" in figures(job, names)


# -- real processes --------------------------------------------------------------------------------------------------------------------------


def test_the_command_line_from_start_to_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", RECIPE, "--data", "digits", "--budget", "smoke", "--device", "cpu", "--runs", str(tmp_path / "lab")]
    command += ["--set", "network=mlp", "--set", "training.steps=4", "--set", "training.clip=none"]
    command += ["--case", "latent=2 training.lr=1e-3", "--case", "latent=3 training.lr=1e12"]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("new") == 2
    assert not (tmp_path / "lab").exists()

    assert main([*command, "--jobs", "2", "--measure", "total", "training.images"]) == 1
    out, err = capsys.readouterr()
    assert "1 of 2 runs failed" in err
    assert "non-finite loss" in out
    (table,) = (tmp_path / "sweeps").glob("*.csv")
    good, bad = csv.DictReader(table.read_text().splitlines())
    assert (good["latent"], good["status"], bad["latent"], bad["status"]) == ("2", "done", "3", "failed")
    assert float(good["training.images"]) == 256
    assert float(good["total"]) > 0
    assert bad["total"] == ""
    saved = json.loads(table.with_suffix(".json").read_text())
    assert saved["runs"][0]["settings"] == {"network": "mlp", "training.steps": 4, "training.clip": None, "latent": 2, "training.lr": 1e-3}
    assert saved["runs"][0]["figures"]["total"] == float(good["total"])
    assert "non-finite" in saved["runs"][1]["message"]
    assert table.with_suffix(".md").read_text().startswith(f"Sweep: {RECIPE} on digits, smoke budget network=mlp")

    weights = Path(saved["runs"][0]["folder"]) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert main([*command[:-4], "--case", "latent=2 training.lr=1e-3"]) == 0, "all is done"
    assert "skipped" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before


def test_interrupted_then_killed_then_resumed(tmp_path: Path) -> None:
    """Ctrl-C on a sweep, SIGKILL on its next attempt, and a third that goes on from the last checkpoint to the end."""
    settings = {**SMALL, "training.steps": 100_000, "training.log_every": 5, "training.checkpoint_every": 0.01}
    jobs = jobs_of(tmp_path, settings=settings)
    run = RunFolder.at(jobs[0].folder)

    def interrupt() -> None:
        while not run.history_file.is_file():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    (outcome,) = run_jobs(jobs, Local(1, poll=0.02), device="cpu")
    assert outcome.status == "interrupted"
    assert "goes on from its checkpoint" in outcome.message
    assert state(jobs[0].folder) == "unfinished"
    first = load_tensors(run.checkpoint_file, "x")[1]["history"]["rows"]

    def kill() -> None:
        while len(run.history_file.read_text().splitlines()) < len(first) + 8:
            time.sleep(0.01)
        os.kill(json.loads((jobs[0].folder / lock.NAME).read_text())["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    (outcome,) = run_jobs(jobs, Local(1, poll=0.02), device="cpu")
    thread.join()
    assert outcome.status == "failed"
    assert "killed by SIGKILL" in outcome.message
    assert lock.holder(jobs[0].folder) is None
    second = load_tensors(run.checkpoint_file, "x")[1]["history"]["rows"]
    assert second[: len(first)] == first, "the second attempt went on from the first one's checkpoint"
    assert len(second) > len(first)


def test_seeds_are_averaged(tmp_path: Path) -> None:
    jobs = expand([RECIPE], ["digits"], root=tmp_path, budget="smoke", grid={"latent": [2, 3]}, seeds=(0, 1, 2))
    losses = {2: [1.0, 2.0, 3.0], 3: [5.0, 7.0, None]}
    outcomes = []
    for job in jobs:
        loss = losses[job.settings["latent"]][job.seed]
        outcomes.append(Outcome(job, "failed" if loss is None else "done", 1.0, "", {} if loss is None else {"total": loss}))
    table = seed_table(outcomes)
    assert table is not None
    assert table.columns == ("latent", "seeds", "total", "total, error")
    assert table.rows[0] == (2, 3, 2.0, pytest.approx(1 / 3**0.5))
    assert table.rows[1] == (3, 2, 6.0, pytest.approx(1.0))
    assert seed_table([outcome for outcome in outcomes if outcome.job.seed == 0]) is None


def test_an_interrupted_sweep_still_shows_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(jobs: list[Job], *a: object, **k: object) -> list[Outcome]:
        return [Outcome(jobs[0], "done", 1.0, "finished", {"total": 2.0}), Outcome(jobs[1], "interrupted", None, "not started")]

    monkeypatch.setattr("expost.runs.sweep.batch.run_jobs", interrupted)
    command = ["sweep", RECIPE, "--data", "digits", "--budget", "smoke", "--seeds", "0", "1", "--runs", str(tmp_path / "lab")]
    assert main([*command, "--out", str(tmp_path / "t.1")]) == 130
    assert "interrupted; the same command goes on" in (captured := capsys.readouterr()).err
    assert "done" in captured.out
    assert [row["status"] for row in csv.DictReader((tmp_path / "t.1.csv").read_text().splitlines())] == ["done", "interrupted"]


# -- a cluster -------------------------------------------------------------------------------------------------------------------------------

SBATCH = """#!{python} -S
import os, re, subprocess, sys
script = sys.argv[1]
text = open(script).read()
if "--partition=full" in text:
    sys.exit("sbatch: error: invalid partition specified: full")
array = re.search(r"--array=0-([0-9]+)", text)
environment = dict(os.environ, SLURM_JOB_ID="7")
for i in range(int(array[1]) + 1 if array else 1):
    if array:
        environment.update(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(i))
    process = subprocess.Popen(["bash", script], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    open(f"{root}/7_{{i}}.pid", "w").write(str(process.pid))
print("Submitted batch job 7")
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for f in {root}/*.pid; do
  if kill -0 $(cat $f) 2>/dev/null; then s=RUNNING; else s=OUT_OF_MEMORY; fi
  echo "$(basename $f .pid)|$s|node1"
done
"""
SCANCEL = """#!/bin/bash
echo "$@" >> {root}/cancelled
kill -TERM -- -$(cat {root}/$1.pid)
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, as much of them as submitit uses, on this machine."""
    root = tmp_path / "cluster"
    root.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL}.items():
        (root / name).write_text(
            text.replace("{{", "{").replace("}}", "}").replace("{root}", str(root)).replace("{python}", sys.executable)
        )
        (root / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # jobs do not get sys.path
    return root


def test_a_cluster_trains_a_run(tmp_path: Path, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", RECIPE, "--data", "digits", "--budget", "smoke", "--device", "cpu", "--runs", str(tmp_path / "lab")]
    command += ["--set", "network=mlp", "--set", "training.steps=4", "--slurm", "gpu", "--slurm-gpus", "1", "--slurm-mem", "1.5"]
    assert main([*command, "--slurm-time", "7", "--slurm-option", "account=abc"]) == 0
    assert "done" in capsys.readouterr().out
    (script,) = (tmp_path / "lab" / "slurm").glob("*_submission.sh")
    text = script.read_text()
    for line in ("partition=gpu", "time=7", "gpus-per-node=1", "mem=1536MB", "account=abc", "cpus-per-task=1"):
        assert f"#SBATCH --{line}" in text
    assert "export OMP_NUM_THREADS=1" in text


def test_a_cluster_job_that_dies_is_a_failed_run(tmp_path: Path, cluster: Path, ended: Path) -> None:
    jobs = jobs_of(tmp_path / "lab", seeds=(0, 1, 2))

    def command(job: Job, attempt: str, **_: object) -> list[str]:
        done = f"cp {ended}/model.safetensors {job.folder}; {saying(job, attempt, 'done')}"
        texts = {0: f"mkdir -p {job.folder}; {done}", 1: "kill -9 $$", 2: "kill -9 $PPID $$"}
        return ["/bin/sh", "-c", texts[job.seed]]

    executor = Slurm("gpu", tmp_path / "lab" / "slurm", parallel=2, poll=0.05, refresh=0.2)
    outcomes = run_jobs(jobs, executor, command=command)
    assert [o.status for o in outcomes] == ["done", "failed", "failed"]
    assert "Slurm job 7_1 ended" in outcomes[1].message
    assert "OUT_OF_MEMORY" in outcomes[2].message
    (script,) = (tmp_path / "lab" / "slurm").glob("*_submission.sh")
    assert "--array=0-2%2" in script.read_text()


def test_ctrl_c_cancels_the_jobs_of_a_cluster(tmp_path: Path, cluster: Path) -> None:
    jobs = jobs_of(tmp_path / "lab", seeds=(0, 1))

    def interrupt() -> None:
        while len(list(cluster.glob("*.pid"))) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    executor = Slurm("gpu", tmp_path / "lab" / "slurm", poll=0.05)
    outcomes = run_jobs(jobs, executor, command=lambda *a, **k: ["sleep", "30"])
    assert [o.status for o in outcomes] == ["interrupted"] * 2
    assert (cluster / "cancelled").read_text().split() == ["7_0", "7_1"]


def test_a_cluster_that_refuses_or_is_none(tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_of(tmp_path / "lab")
    with pytest.raises(ValueError, match=r"has not accepted the runs.*invalid partition"):
        run_jobs(jobs, Slurm("full", tmp_path / "slurm", poll=0.05))
    with pytest.raises(ValueError, match="does not know these options"):
        Slurm("gpu", tmp_path, options={"nosuch": 1})
    with pytest.raises(ValueError, match="at least 1"):
        Slurm("gpu", tmp_path, minutes=0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no srun here"):
        Slurm("gpu", tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="pip install"):
        Slurm("gpu", tmp_path)


# -- mistakes --------------------------------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no recipe": (["sweep"], "at least one recipe"),
    "unknown recipe": (["sweep", "ghosh2020/vea", "--data", "digits"], "did you mean"),
    "malformed axis": (["sweep", RECIPE, "--data", "digits", "--grid", "latent"], "--grid name=value,value"),
    "an axis twice": (["sweep", RECIPE, "--data", "digits", "--grid", "latent=1", "--grid", "latent=2"], "as an axis twice"),
    "same run twice": (["sweep", RECIPE, "--data", "digits", "--seeds", "1", "1", "--dry-run"], "same run twice"),
    "unknown setting": (["sweep", RECIPE, "--data", "digits", "--grid", "latnt=1,2"], 'did you mean "latent"'),
    "no processes": (
        ["sweep", RECIPE, "--data", "digits", "--budget", "smoke", "--device", "cpu", "--jobs", "0"],
        "--jobs must be a whole number of at least 1",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, sentence = MISTAKES[name]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("expost: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
