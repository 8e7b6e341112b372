"""The training loop: what it records, keeps, stops at and refuses."""

from __future__ import annotations

import csv
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import expost
from expost import heads
from expost.autoencoder import evaluating
from expost.objectives import ELBO, RAE, WAE, Adversarial, Annealed, Clipped, Loss, Objective
from expost.optimise import Constant, Cosine, Halving, Milestones, Plateau
from expost.system.files import load_tensors
from expost.train.fit import fit
from expost.train.folder import RunFolder, split_prefix
from expost.train.history import History
from expost.train.second_stage import SecondStage
from expost.train.settings import Training, automatic_precision
from runs import ENDLESS, Watched, critic
from toys import bits, convolutional, model, pictures, same, vectors

SHORT = Training(steps=20, batch_size=16, log_every=5)
HERE = Path(__file__).parent


def train(m=None, objective=None, x=None, training=SHORT, **k):
    m = m or model()
    return m, fit(m, objective or ELBO(), vectors() if x is None else x, training=training, device="cpu", **k)


# -- determinism, order and noise ------------------------------------------------------------------------------------------------------------


def test_same_seed_twice_is_bitwise_equal():
    first, history = train()
    torch.randn(1000)  # whatever the global generator did in between
    second, again = train()
    assert same(bits(first), bits(second))
    assert [r["total"] for r in history.rows] == [r["total"] for r in again.rows]
    other, _ = train(seed=1)
    assert not same(bits(first), bits(other))


def test_training_lowers_the_loss_and_leaves_the_random_state():
    state = torch.get_rng_state()
    _, history = train(training=Training(epochs=60, batch_size=16, lr=1e-2))
    assert torch.equal(torch.get_rng_state(), state)
    assert history.last() < history.curve().y[0] - 1


def test_an_epoch_visits_every_example_once_in_its_own_order():
    x, seen = torch.arange(22.0)[:, None].expand(22, 6).contiguous(), []

    class Spy(ELBO):
        def __call__(self, m, batch):
            seen.append(batch[:, 0].tolist())
            return super().__call__(m, batch)

    train(objective=Spy(), x=x, training=Training(epochs=3, batch_size=5))
    assert len(seen) == 12, "the last partial batch is left out"
    epochs = [list(itertools.chain(*seen[i : i + 4])) for i in (0, 4, 8)]
    assert all(len(set(e)) == 20 for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_posteriors_as_data_give_fresh_codes_every_epoch():
    q = torch.distributions.Independent(torch.distributions.Normal(vectors(16), 0.5), 1)
    seen = []

    class Spy(ELBO):
        def __call__(self, m, batch):
            seen.append(batch.clone())
            return super().__call__(m, batch)

    train(objective=Spy(), x=q, training=Training(epochs=2, batch_size=16))
    first, second = (b[b[:, 0].argsort()] for b in seen)
    assert not torch.allclose(first, second)
    assert float((torch.cat(seen) - torch.cat([q.mean, q.mean])).std()) > 0.5


def test_bytes_are_scaled_in_training():
    seen = []

    class Spy(RAE):
        def __call__(self, m, batch):
            seen.append((batch.dtype, float(batch.min()), float(batch.max())))
            return super().__call__(m, batch)

    x = pictures(16)
    train(convolutional(), Spy(), x, Training(steps=2, batch_size=16))
    assert seen == [(torch.float32, float(x.min()) / 255, float(x.max()) / 255)] * 2


# -- what is recorded --------------------------------------------------------------------------------------------------------------------------


def test_history_rows(tmp_path):
    x, val = vectors(64), vectors(20, seed=1)
    m = model(decoder_head=heads.Gaussian("shared"))
    _, history = train(m, x=x, val=val, training=Training(epochs=3, batch_size=16, log_every=3, lr=2e-3), out=tmp_path)
    kinds = [(r["step"], r["split"]) for r in history.rows]
    assert kinds == [
        (3, "train"), (4, "train"), (4, "val"), (6, "train"), (8, "train"), (8, "val"), (9, "train"), (12, "train"), (12, "val"),
    ]  # fmt: skip
    for row in history.rows:
        assert {"step", "epoch", "split", "seconds", "lr", "total", "distortion", "rate"} <= set(row)
        assert row["total"] == pytest.approx(row["distortion"] + row["rate"], rel=1e-5)
        assert row["lr"] == 2e-3
        assert ("log_gamma" in row) == (row["split"] == "train")
    assert history.rows[-1]["epoch"] == 3.0
    assert history.rows[0]["epoch"] == 0.75
    assert history.images == 12 * 16
    assert history.seconds > 0
    assert (history.stopped, history.best_step, history.failed) == ("finished", 12, False)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["step"]), r["split"]) for r in rows] == kinds
    assert float(rows[0]["total"]) == history.rows[0]["total"]
    curve = history.curve("rate", "val")
    assert (curve.x, curve.y_label) == ([4.0, 8.0, 12.0], "rate (nats)")
    assert History.from_json(history.to_json()) == history
    with pytest.raises(ValueError, match='no "mmd" for "val"'):
        history.last("mmd", "val")


def test_a_train_row_is_the_mean_of_its_interval():
    totals = []

    class Spy(ELBO):
        def __call__(self, m, batch):
            loss = super().__call__(m, batch)
            totals.append(float(loss.total.detach().mean()))
            return loss

    _, history = train(objective=Spy())
    assert len(totals) == 20
    expected = [sum(totals[a:b]) / (b - a) for a, b in [(0, 4), (4, 5), (5, 8), (8, 10), (10, 12), (12, 15), (15, 16), (16, 20)]]
    assert [r["total"] for r in history.rows] == pytest.approx(expected, rel=1e-6), "a row closes at log_every and at the end of an epoch"


@pytest.mark.parametrize("n", [16, 17, 31, 33])
def test_the_validation_loss_is_the_mean_over_examples(n):
    """Whatever the remainder of the last batch; a remainder of one is left out, because batch statistics need two."""
    val = vectors(n, seed=1)
    m, history = train(model(heads.Dirac()), RAE(0.1), val=val)
    with evaluating(m):
        kept = n - 1 if n % 16 == 1 else n
        expected = float(RAE(0.1)(m, val[:kept]).total.mean())
    assert history.last("total", "val") == pytest.approx(expected, rel=1e-5)


def test_validation_leaves_batch_statistics_and_the_critic_alone():
    own = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    start = bits(own)
    states = {}
    for val in (None, pictures(12, seed=1)):
        own.load_state_dict(start)
        m = convolutional(heads.Gaussian(0.5, torch.sigmoid))
        train(m, Adversarial(own, 1.0), pictures(32), Training(epochs=3, batch_size=16), val=val)
        states[val is None] = {**bits(m), **{f"critic.{k}": v for k, v in bits(own).items()}}
    assert same(*states.values())


# -- what is kept ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.8])
def test_the_best_weights_are_really_the_best(ema, tmp_path):
    val = 0.1 * torch.randn(40, 6)  # of another distribution: improves at first, then the model specialises
    training = Training(epochs=12, batch_size=16, lr=0.02, best=True, ema=ema)
    m, history = train(model(heads.Dirac()), RAE(0.1), val=val, training=training, out=tmp_path)
    losses = history.curve("total", "val")
    best = min(range(12), key=lambda i: losses.y[i])
    assert 0 < best < 11, "or the test shows nothing"
    assert history.best_step == losses.x[best]
    with evaluating(m):
        assert float(RAE(0.1)(m, val).total.mean()) == pytest.approx(losses.y[best], rel=1e-6)
    loaded = model(heads.Dirac(), seed=5)
    meta = RunFolder.at(tmp_path).load_model(loaded)
    assert meta["step"] == history.best_step
    assert same(bits(loaded), bits(m))


def test_exponential_average_by_hand():
    """average <- d · average + (1 - d) · weights, d = min(decay, (1 + t) / (10 + t))."""
    visited = []
    m, _ = train(
        objective=Watched(ELBO(), lambda step: None, lambda m: visited.append(bits(m))), training=Training(steps=9, batch_size=16, ema=0.3)
    )
    average = bits(model())
    for t, state in enumerate(visited):
        decay = min(0.3, (1 + t) / (10 + t))
        average = {k: decay * average[k] + (1 - decay) * state[k] for k in average}
    for name, value in bits(m).items():
        torch.testing.assert_close(value, average[name])
    assert not same(bits(m), visited[-1])
    plain, _ = train(training=Training(steps=9, batch_size=16))
    assert same(bits(plain), visited[-1]), "averaging does not change the trajectory"


def test_modes_are_restored():
    m = convolutional()
    m.eval()
    m.decoder.train()
    before = [k.training for k in m.modules()]
    train(m, ELBO(), pictures(), Training(steps=2, batch_size=16))
    assert [k.training for k in m.modules()] == before


def test_models_with_tied_weights_are_saved(tmp_path):
    """As a VampPrior, which holds the encoder too."""
    m = model()
    m.prior.twin = m.encoder
    train(m, out=tmp_path, training=Training(steps=6, batch_size=16, checkpoint_every=0.0))
    other = model(seed=3)
    other.prior.twin = other.encoder
    RunFolder.at(tmp_path).load_model(other)
    assert same(bits(other), bits(m))


# -- optimisation ------------------------------------------------------------------------------------------------------------------------------


def rates(training, epochs=4, **k):
    """Learning rate of each step."""
    seen = []
    handle = register_optimizer_step_pre_hook(lambda optimiser, *_: seen.append([g["lr"] for g in optimiser.param_groups]))
    try:
        train(training=training, **k)
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), [1.0] * 8),
        (Halving(2), [1.0] * 4 + [0.5] * 4),
        (Milestones((0.25, 0.75), 0.1), [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (Cosine(warmup=0.25), [0.004, 0.5, *(0.5 * (1 + math.cos(math.pi * t / 6)) for t in range(6))]),
    ],
)
def test_schedules(schedule, expected):
    seen = rates(Training(epochs=4, batch_size=32, lr=0.01, schedule=schedule))
    assert [g[0] / 0.01 for g in seen] == pytest.approx(expected)


def test_cosine_never_exceeds_the_rate():
    for warmup in (0.0, 1e-4, 0.05, 1.0):
        factors = [Cosine(warmup).factor(i / 1000, 0) for i in range(1001)]
        assert 0 <= min(factors) <= max(factors) <= 1
    assert Cosine(0.0, final=0.1).factor(1.0, 9) == pytest.approx(0.1)


def test_plateau():
    """A rate so small that the loss stands still: halved after every two validations without improvement."""
    training = Training(epochs=7, batch_size=32, lr=1e-15, schedule=Plateau(patience=2), log_every=1)
    _, history = train(model(heads.Dirac()), RAE(), val=vectors(9, seed=1), training=training)
    lr = [r["lr"] / 1e-15 for r in history.rows if r["split"] == "train"]
    assert lr == pytest.approx([1] * 6 + [0.5] * 4 + [0.25] * 4)
    state: dict[str, float] = {}
    rule, factors = Plateau(patience=2, floor=0.3), []
    for value in (3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0):
        state = rule.after_validation(value, state)
        factors.append(state["factor"])
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3]


def test_head_lr_and_optimisers():
    seen = rates(Training(steps=1, lr=0.01, head_lr=0.5), m=model(decoder_head=heads.Gaussian("shared")))
    assert seen == [[0.01, 0.5]]
    kinds = {}
    for name in ("adam", "adamw", "amsgrad"):
        made = []
        handle = register_optimizer_step_pre_hook(lambda optimiser, *_, made=made: made.append(optimiser))
        train(training=Training(steps=3, optimiser=name, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1))
        handle.remove()
        group = made[0].param_groups[0]
        kinds[name] = (type(made[0]).__name__, group["amsgrad"])
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.9), 1e-3, 0.1)
    assert kinds == {"adam": ("Adam", False), "adamw": ("AdamW", False), "amsgrad": ("Adam", True)}


def test_one_step_is_torchs_adam():
    m, reference = model(heads.Dirac()), model(heads.Dirac())
    x = vectors(16)
    train(m, RAE(0.1), x, Training(steps=3, batch_size=16, lr=0.01))
    optimiser = torch.optim.Adam(reference.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        RAE(0.1)(reference, x).total.mean().backward()
        optimiser.step()
    for a, b in zip(m.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_clipping_bounds_the_norm(clip):
    norms = []

    def norm(optimiser, *_):
        gradients = [p.grad.flatten() for g in optimiser.param_groups for p in g["params"]]
        norms.append(float(torch.cat(gradients).norm()))

    handle = register_optimizer_step_pre_hook(norm)
    train(training=Training(steps=4, batch_size=16, clip=clip))
    handle.remove()
    if clip is None:
        assert min(norms) > 0.1
    else:
        assert norms == pytest.approx([clip] * 4, rel=1e-3)


def test_annealed_and_clipped_objectives_act_in_training():
    betas = []

    @dataclass(frozen=True)
    class Spy(ELBO):
        def __call__(self, m, batch):
            betas.append(self.beta)
            return super().__call__(m, batch)

    m, _ = train(objective=Clipped(Annealed(Spy(beta=2.0), "beta", 4), 0.05), training=Training(steps=6, batch_size=16))
    assert betas == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert all(p.abs().max() <= 0.05 for p in m.encoder.parameters())


def test_bfloat16_networks_keep_float32_weights():
    m, history = train(training=Training(epochs=40, batch_size=16, lr=1e-2, precision="bfloat16"))
    assert all(p.dtype == torch.float32 for p in m.parameters())
    assert history.last() < history.curve().y[0] - 1
    exact, _ = train(training=Training(epochs=40, batch_size=16, lr=1e-2, precision="float32"))
    assert not same(bits(m), bits(exact))
    assert automatic_precision(model(), torch.device("cpu")) is None, "too small to pay"


# -- how it ends -------------------------------------------------------------------------------------------------------------------------------


def test_steps_and_epochs():
    assert train(training=Training(steps=7, batch_size=16))[1].images == 7 * 16
    assert train(training=Training(epochs=2, batch_size=16))[1].images == 8 * 16
    assert train(training=Training(epochs=2, batch_size=1000))[1].images == 2 * 64, "a batch larger than the data is the data"
    for bad in (Training(), Training(steps=1, epochs=1)):
        with pytest.raises(ValueError, match=r"epochs=... or as steps=..., one of the two"):
            train(training=bad)


def test_early_stop():
    training = Training(epochs=50, batch_size=32, lr=1e-15, patience=3)
    _, history = train(model(heads.Dirac()), RAE(), val=vectors(9, seed=1), training=training)
    assert history.stopped == "early stop"
    assert len(history.curve("total", "val").y) == 4, "one that is best, three that are not better"


def test_time_limit(tmp_path):
    m, history = train(training=Training(steps=10**9, batch_size=16, minutes=0.3 / 60), out=tmp_path)
    assert history.stopped == "time"
    assert 0.3 <= history.seconds < 20
    assert history.curve().x[-1] == history.best_step, "the last interval is recorded"
    loaded = model(seed=4)
    RunFolder.at(tmp_path).load_model(loaded)
    assert same(bits(loaded), bits(m))


@dataclass(frozen=True)
class Overflows(Objective):
    """RAE whose loss, or whose gradient alone, is not finite at one step."""

    at_step: int
    where: str = "loss"
    step: int = 0

    def __call__(self, m, x) -> Loss:
        loss = RAE(0.1)(m, x)
        if self.step != self.at_step:
            return loss
        if self.where == "loss":
            return Loss(loss.total * float("nan"), loss.parts)
        weight = next(m.parameters())
        return Loss(loss.total + 0 * (weight.sum() - weight.sum().detach()).sqrt(), loss.parts)  # 0 · d√u/du at 0 = NaN

    def at(self, step: int) -> Objective:
        return Overflows(self.at_step, self.where, step)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("step", [6, 7, 11])  # in, and in the last step of, an epoch of four; the last step of all
def test_a_non_finite_loss_stops_with_the_last_good_weights(tmp_path, where, step, ema):
    training = Training(steps=12, batch_size=16, ema=ema)
    m, history = train(model(heads.Dirac()), Overflows(step, where), training=training, out=tmp_path)
    assert history.failed
    assert history.stopped.startswith("non-finite loss at step")
    good = 4 * (step // 4)
    assert history.best_step == good
    assert f"those of step {good}; lower the learning rate" in history.stopped
    reference, _ = train(model(heads.Dirac()), RAE(0.1), training=Training(steps=good, batch_size=16, ema=ema))
    assert same(bits(m), bits(reference))
    loaded = model(heads.Dirac(), seed=4)
    meta = RunFolder.at(tmp_path).load_model(loaded)
    assert meta["stopped"] == history.stopped
    assert same(bits(loaded), bits(m))
    _, history = train(model(heads.Dirac()), RAE(0.1), training=training, out=tmp_path)
    assert not history.failed, "the folder can be used again"


def test_non_finite_before_the_first_epoch_gives_back_the_start():
    m, history = train(model(heads.Dirac()), Overflows(1))
    assert history.best_step == 0
    assert same(bits(m), bits(model(heads.Dirac())))


# -- run folders -------------------------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a training from outside, as a crash would."""


def crash(at: int):
    def before(step: int) -> None:
        if step == at:
            raise Stop

    return before


def unfinished(folder, objective=None, training=None):
    training = training or Training(steps=20, batch_size=16, log_every=5, checkpoint_every=0.0)
    with pytest.raises(Stop):
        train(objective=Watched(objective or ELBO(), crash(11)), training=training, out=folder)
    return training


def test_a_crashed_run_resumes_to_the_same_bits(tmp_path):
    training = unfinished(tmp_path)
    assert load_tensors(tmp_path / "checkpoint.safetensors", "x")[1]["step"] == 11
    assert not (tmp_path / "model.safetensors").exists()
    stopped = RunFolder.at(tmp_path).state()
    assert (stopped.name, stopped.at, stopped.why) == ("stopped", "step 11 of 20", "Stop:")
    so_far, _ = train(objective=Watched(ELBO(), lambda step: None), training=replace(training, steps=11))
    loaded = model(seed=5)
    RunFolder.at(tmp_path).load_model(loaded)
    assert same(bits(loaded), bits(so_far)), "its weights so far can be used"
    m, history = train(model(seed=9), Watched(ELBO(), lambda step: None), training=training, out=tmp_path, resume=True)
    reference, whole = train(objective=Watched(ELBO(), lambda step: None), training=training)
    assert same(bits(m), bits(reference))
    assert [(r["step"], r["total"]) for r in history.rows] == [(r["step"], r["total"]) for r in whole.rows]
    assert history.images == whole.images
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.csv", "model.safetensors", "results.json", "state.json"]


def test_an_unfinished_run_is_not_overwritten(tmp_path):
    training = unfinished(tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds an unfinished run: continue it with resume=True"):
        train(objective=Watched(ELBO(), lambda step: None), training=training, out=tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    training = unfinished(tmp_path, RAE(0.1), Training(steps=20, batch_size=16, checkpoint_every=0.0, minutes=60))

    def attempt(objective=None, t=training, x=None, seed=0, m=None):
        return train(m, objective or Watched(RAE(0.1), lambda step: None), x, t, seed=seed, out=tmp_path, resume=True)

    for change in (
        {"t": replace(training, lr=2e-3)}, {"t": replace(training, batch_size=8)}, {"seed": 1}, {"x": vectors(seed=3)}, {"x": vectors(63)},
        {"objective": RAE(0.1)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="belongs to a run with other settings or other data: repeat the original settings") as error:
            attempt(**change)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"does not fit this model: .* is \(16,\) there and \(8,\) here"):
        attempt(m=model(width=8))
    with pytest.raises(ValueError, match=r'does not fit this model: "decoder.head.log_scale" is unknown'):
        attempt(m=model(decoder_head=heads.Bernoulli()))
    _, history = attempt(t=replace(training, minutes=None, checkpoint_every=30.0))
    assert history.stopped == "finished", "time limits and intervals of writing may change"


@pytest.mark.parametrize("keep", [0, 100, -5])
def test_a_damaged_checkpoint_gives_one_sentence(tmp_path, keep):
    training = unfinished(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated or is not the checkpoint of a run"):
        train(objective=Watched(ELBO(), lambda step: None), training=training, out=tmp_path, resume=True)


def test_identities_have_no_addresses(tmp_path):
    """A WAE holds its kernel, an RAE its penalty: functions, whose addresses differ between processes."""
    unfinished(tmp_path, WAE())
    fingerprint = load_tensors(tmp_path / "checkpoint.safetensors", "x")[1]["fingerprint"]
    assert "0x" not in fingerprint
    folder = tmp_path / "penalty"
    with pytest.raises(KeyboardInterrupt):
        train(model(heads.Dirac()), RAE(0.1, lambda m, z, p: signal.raise_signal(signal.SIGINT) or z.square().sum(1)), out=folder)
    assert "0x" not in load_tensors(folder / "checkpoint.safetensors", "x")[1]["fingerprint"]


def test_a_finished_run_resumed_returns_at_once(tmp_path):
    m, history = train(out=tmp_path, training=Training(steps=20, batch_size=16, log_every=5, ema=0.9))
    steps = []
    spy = Watched(ELBO(), steps.append)
    again = model(seed=7)
    second = fit(
        again, ELBO(), vectors(), training=Training(steps=20, batch_size=16, log_every=5, ema=0.9), out=tmp_path, resume=True, device="cpu"
    )
    assert same(bits(again), bits(m))
    assert second.timeless() == history.timeless()
    assert second.seconds == pytest.approx(history.seconds, abs=0.01)
    _, third = train(objective=spy, out=tmp_path, resume=True)
    assert len(steps) == 20, "another run starts anew"
    assert third.stopped == "finished"


def test_the_critic_is_trained_and_saved(tmp_path):
    own = critic()
    start = bits(own)
    objective = Adversarial(own, 1.0)
    training = Training(steps=20, batch_size=16, checkpoint_every=0.0)
    with pytest.raises(Stop):
        train(model(heads.Dirac()), Watched(objective, crash(11)), training=training, out=tmp_path)
    tensors, _ = load_tensors(tmp_path / "checkpoint.safetensors", "x")
    saved = split_prefix("objective/critic", tensors)
    assert same(saved, bits(own))
    assert not any(torch.equal(saved[k], start[k]) for k in saved)
    assert split_prefix("optimiser/critic", tensors).keys() == {f"{i}/{k}" for i in range(4) for k in ("step", "exp_avg", "exp_avg_sq")}
    fresh = Adversarial(critic(), 1.0)
    m, history = train(model(heads.Dirac(), seed=8), Watched(fresh, lambda step: None), training=training, out=tmp_path, resume=True)
    reference = Adversarial(critic(), 1.0)
    whole, _ = train(model(heads.Dirac()), reference, training=training)
    assert same(bits(fresh.critic), bits(reference.critic))
    assert same(bits(m), bits(whole))
    assert {"critic", "fool", "distortion", "total"} <= set(history.rows[-1])


def test_the_critic_learns_to_tell_codes_from_prior_samples():
    own = critic()
    m = model(heads.Dirac())
    for p in m.parameters():
        p.requires_grad_(p is m.decoder.net[0].bias)  # codes stay where they are, away from the prior
    with torch.no_grad():
        m.encoder.net[2].bias.add_(3.0)
    _, history = train(m, Adversarial(own), training=Training(epochs=100, batch_size=16, lr=1e-2))
    critic_losses = history.curve("critic").y
    assert critic_losses[-1] < 0.5 < 1.2 < critic_losses[0]


# -- second stage ------------------------------------------------------------------------------------------------------------------------------


def moons(n: int, seed: int) -> torch.Tensor:
    """Codes on a noisy circle: N(0, I) is a poor density for them."""
    g = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(n, generator=g)
    return torch.stack([angle.cos(), angle.sin()], 1) * 1.2 + 0.1 * torch.randn(n, 2, generator=g)


def stage(training: Training) -> SecondStage:
    return SecondStage(model(heads.Diagonal(heads.exp), heads.Gaussian("shared"), d=2, latent=2, width=32), training)


@pytest.mark.parametrize("source", ["codes", "posteriors"])
def test_second_stage_beats_the_standard_normal(source):
    z = moons(512, 0)
    training = Training(steps=600, batch_size=128, lr=5e-3, head_lr=2e-2)
    codes = z if source == "codes" else torch.distributions.Independent(torch.distributions.Normal(z, 0.05), 1)
    density = stage(training)
    with pytest.raises(ValueError, match="has not been fitted"):
        density()
    assert density.fit(codes) is density
    test = moons(400, 1)
    gain = density().log_prob(test).detach().mean() - stage(training).model.latent().log_prob(test).mean()
    assert float(gain) > 0.3
    assert density().sample((5,)).shape == (5, 2)
    outer = model().with_prior(density)
    assert outer.generate(4).shape == (4, 6)


def test_second_stage_fit_is_repeatable_and_replaces():
    training = Training(steps=15, batch_size=64)
    first, z = stage(training).fit(moons(128, 0)), moons(128, 0)
    state = bits(first)
    assert same(bits(first.fit(z)), state), "a second fit replaces the first"
    assert not same(bits(stage(training).fit(z, seed=1)), state)
    loaded = stage(training)
    loaded.load_state_dict(state)
    assert torch.isfinite(loaded().log_prob(z)).all()
    with pytest.raises(ValueError, match="matrix"):
        stage(training).fit(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="NaN"):
        stage(training).fit(torch.full((5, 2), float("nan")))


# -- refusals ----------------------------------------------------------------------------------------------------------------------------------


def test_refusals():
    with pytest.raises(ValueError, match="no training examples"):
        train(x=torch.zeros(0, 6))
    for training in (Training(steps=1, best=True), Training(steps=1, patience=2), Training(steps=1, schedule=Plateau())):
        with pytest.raises(ValueError, match="need validation data: pass val="):
            train(training=training)
    with pytest.raises(ValueError, match="trackers write into the run folder"):
        train(trackers=("tensorboard",))
    with pytest.raises(ValueError, match=r"the training data hold NaN or infinity in 1 of 8 rows \(first: row 3\)"):
        train(x=vectors(8).index_fill(0, torch.tensor([3]), float("nan")))
    with pytest.raises(TypeError, match="convert it with"):
        train(x=torch.zeros(8, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="a deterministic encoder has no ELBO"):
        train(model(heads.Dirac()))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1"), ({"batch_size": 0}, "batch_size"), ({"log_every": 0}, "log_every"),
        ({"lr": 0.0}, "lr must be a number above 0"), ({"lr": float("nan")}, "lr must be"), ({"ema": 1.0}, "ema must be a number above 0 and below 1"),
        ({"patience": 0}, "patience"), ({"optimiser": "sgd"}, "adam, adamw or amsgrad"), ({"optimiser": "AdamW"}, "adam, adamw or amsgrad"),
        ({"clip": -1}, "clip must be a number above 0"), ({"clip": 0}, "clip"), ({"precision": "float16"}, "auto, float32 or bfloat16"),
        ({"schedule": "cosine"}, "schedule"), ({"weight_decay": -1}, "weight_decay"), ({"betas": (0.9, 1.0)}, "betas"), ({"betas": 0.9}, "betas"),
        ({"epochs": 2.5}, "epochs"), ({"best": 1}, "best must be true or false"), ({"minutes": 0}, "minutes"), ({"checkpoint_every": -1}, "checkpoint"),
    ],
)  # fmt: skip
def test_settings_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        Training(**setting)


# -- processes ---------------------------------------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_resumable_run_and_no_bar_off_a_terminal(tmp_path):
    code = f"import runs; runs.interruptible({str(tmp_path / 'run')!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "src")])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "history.csv").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), error) == (130, "interrupted", "")
    _, meta = load_tensors(tmp_path / "run" / "checkpoint.safetensors", "the checkpoint")
    step = meta["step"]
    assert step > 0
    steps = []

    def note(step: int) -> None:
        steps.append(step)
        raise Stop

    with pytest.raises(Stop):
        train(objective=Watched(ELBO(), note), training=ENDLESS, out=tmp_path / "run", resume=True)
    assert steps == [step], "the run goes on at the next step"


def test_the_bar_is_shown_on_a_terminal_only(monkeypatch, capfd):
    train()
    assert capfd.readouterr().err == ""
    controller, terminal = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        train(training=Training(steps=40, batch_size=16))
        train(progress=False)
        monkeypatch.undo()
        shown = os.read(controller, 2**16).decode()
    os.close(controller)
    assert shown.count("training") >= 1
    assert "40/40" in shown
    assert "20/20" not in shown


def test_averaging_keeps_the_vectors_of_a_spectral_norm() -> None:
    """The mean of unit vectors is not one: averaged copies of them once made every spectrally normalised layer too large in evaluation."""
    from expost.nets import small_decoder, small_encoder, spectrally_normalised

    trained = expost.Autoencoder(
        expost.Conditional(spectrally_normalised(small_encoder((1, 8, 8), 4, width=4)), expost.heads.Dirac(), 1, 3),
        expost.Conditional(spectrally_normalised(small_decoder(4, (1, 8, 8), 1, width=4)), expost.heads.Gaussian(link=torch.sigmoid), 3),
    )
    x = torch.rand(128, 1, 8, 8)
    training = expost.Training(steps=60, batch_size=32, ema=0.99, lr=5e-3)
    expost.fit(trained, expost.RAE(0.1), x, training=training, device="cpu")
    vectors = {name: value for name, value in trained.named_buffers() if name.endswith(("_u", "_v"))}
    assert len(vectors) == 2 * 8
    for name, value in vectors.items():
        assert float(value.norm()) == pytest.approx(1, abs=1e-4), name


def test_memory_is_retained_until_the_outermost_block_ends(monkeypatch):
    from expost.fast import memory

    said = []
    library = SimpleNamespace(mallopt=lambda name, value: said.append((name, value)), malloc_trim=lambda pad: said.append("trim"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2"))
    with memory.retained():
        with memory.retained():
            pass
        assert "trim" not in said
        assert not set(memory._DEFAULTS.items()) & set(said)
    assert said[-1] == "trim"
    assert set(memory._DEFAULTS.items()) <= set(said)
