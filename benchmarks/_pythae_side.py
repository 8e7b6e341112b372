"""Pythae's end of ``train_vs_pythae.py``; runs in Pythae's own environment.

What runs is ``BaseTrainer.train()`` itself with its defaults: its loop, data loader, collation, progress bar and callbacks. Two things are
added, through public extension points: the order of the examples is given (a sampler) and the noise is seeded (a hook), so that both
libraries see the same batches and the same noise; and a callback waits at the gate after each step. The loss is read from the model's
output, which the loop computes anyway.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pythae import models, samplers
from pythae.data.datasets import BaseDataset, collate_dataset_output
from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST
from pythae.models.nn.default_architectures import Encoder_AE_MLP, Encoder_VAE_MLP
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch.utils.data import DataLoader, Sampler

from _gate import Gate

MODELS = {
    "vae": (models.VAE, models.VAEConfig, Encoder_Conv_VAE_MNIST, Encoder_VAE_MLP),
    "rae_l2": (models.RAE_L2, models.RAE_L2_Config, Encoder_Conv_AE_MNIST, Encoder_AE_MLP),
    "rae_gp": (models.RAE_GP, models.RAE_GP_Config, Encoder_Conv_AE_MNIST, Encoder_AE_MLP),
    "wae": (models.WAE_MMD, models.WAE_MMD_Config, Encoder_Conv_AE_MNIST, Encoder_AE_MLP),
}


class GivenOrder(Sampler):
    """The example numbers of each epoch as given: (epochs, n); what RandomSampler does, without the draw."""

    def __init__(self, orders: np.ndarray) -> None:
        self.orders, self.epoch = torch.from_numpy(orders), 0

    def __iter__(self) -> Iterator[int]:
        yield from self.orders[self.epoch % len(self.orders)].tolist()

    def __len__(self) -> int:
        return self.orders.shape[1]


class Trainer(BaseTrainer):
    """BaseTrainer, whose loader takes the examples in the given order (None: its own shuffling)."""

    order: GivenOrder | None = None

    def get_train_dataloader(self, train_dataset: BaseDataset) -> DataLoader:
        if self.order is None:
            return super().get_train_dataloader(train_dataset)
        return DataLoader(
            dataset=train_dataset,
            batch_size=self.training_config.per_device_train_batch_size,
            num_workers=self.training_config.train_dataloader_num_workers,
            sampler=self.order,
            collate_fn=collate_dataset_output,
        )


class AtTheGate(TrainingCallback):
    def __init__(self, gate: Gate, order: GivenOrder | None) -> None:
        self.gate, self.order = gate, order

    def on_train_begin(self, training_config: Any, **kwargs: Any) -> None:
        self.gate.rest()

    def on_epoch_begin(self, training_config: Any, **kwargs: Any) -> None:
        if self.order is not None:
            self.order.epoch = kwargs["epoch"] - 1

    def on_train_step_end(self, training_config: Any, **kwargs: Any) -> None:
        self.gate.step()


def build(kind: str, net: str, latent: int) -> models.BaseAE:
    model, config, conv, mlp = MODELS[kind]
    arguments = config(input_dim=(1, 28, 28), latent_dim=latent)
    if net == "mlp":
        return model(arguments, encoder=mlp(arguments))  # the decoder is Pythae's default
    return model(arguments, encoder=conv(arguments), decoder=Decoder_Conv_AE_MNIST(arguments))


def main(options: dict[str, Any]) -> None:
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    x = torch.from_numpy(np.load(options["data"])).float().div(255)
    model = build(options["model"], options["net"], options["latent"])
    if options.get("weights"):
        np.savez(options["weights"], **{k: v.numpy() for k, v in model.state_dict().items()})
    order = GivenOrder(np.load(options["orders"])) if options.get("orders") else None
    losses: list[float] = []
    if options.get("noise"):  # the noise of each step as expost.fit has it, and a note of its loss: some 10 microseconds a step
        noise = np.load(options["noise"]).tolist()
        model.register_forward_pre_hook(lambda *_: torch.default_generator.manual_seed(noise[len(losses)]) and None)
        model.register_forward_hook(lambda _module, _inputs, output: losses.append(float(output.loss.detach())))

    def loss(steps: int) -> dict[str, Any]:
        return {"loss": sum(losses[-steps:]) / steps}

    def evaluate(data: str) -> dict[str, Any]:
        held_out = torch.from_numpy(np.load(data)).float().div(255)
        state = torch.get_rng_state()
        torch.manual_seed(0)
        model.eval()
        with torch.no_grad():
            value = float(torch.stack([model.forward({"data": b}).loss for b in held_out.split(500)]).mean())
        model.train()
        torch.set_rng_state(state)
        return {"loss": value}

    def sample(sampler: str, n: int, path: str, images: int) -> dict[str, Any]:
        """n samples of the model as it is now, by one of Pythae's samplers fitted to ``images`` training images."""
        state, began = torch.get_rng_state(), time.perf_counter()
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - scikit-learn's mixture, as Pythae calls it, draws from here
        model.eval()
        if sampler == "normal":
            generated = samplers.NormalSampler(model).sample(n)
        elif sampler.startswith("gmm"):
            mixture = samplers.GaussianMixtureSampler(model, samplers.GaussianMixtureSamplerConfig(n_components=int(sampler[3:])))
            mixture.fit(x[:images])
            generated = mixture.sample(n)
        else:
            second = samplers.TwoStageVAESampler(model)
            with tempfile.TemporaryDirectory() as folder:
                config = BaseTrainerConfig(output_dir=folder, num_epochs=20, learning_rate=1e-3, per_device_train_batch_size=100)
                second.fit(x[:images], training_config=config)
                generated = second.sample(n)
        model.train()
        torch.set_rng_state(state)
        np.save(path, generated.detach().clamp(0, 1).numpy())
        return {"seconds": time.perf_counter() - began}

    gate = Gate({"loss": loss, "evaluate": evaluate, "sample": sample})
    Trainer.order = order
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=options["epochs"],
            learning_rate=options["lr"],
            per_device_train_batch_size=options["batch"],
            seed=options["seed"],
        )
        dataset = BaseDataset(x, torch.ones(len(x)))
        trainer = Trainer(model, train_dataset=dataset, training_config=config, callbacks=[AtTheGate(gate, order)])
        losses.clear()  # of the trainer's sanity check
        trainer.train()
    gate.rest(finished=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
