"""One end of ``likelihood.py``, for either library; obeys orders at the gate. Pythae's end runs in Pythae's own environment.

Both sides load the same weights (named as in Pythae) and are asked for the mean importance-weighted bound of the same images. Pythae runs its
own ``VAE.get_nll``, in evaluation mode and, unless ``--grad`` is given, to its advantage without gradients; expost its ``importance_bound``. Only that call is timed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _gate import Gate


def pythae_side(options: dict[str, Any], x: torch.Tensor) -> Any:
    from pythae.models import VAE, VAEConfig
    from pythae.models.nn.default_architectures import Encoder_VAE_MLP

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=options["latent"], reconstruction_loss=options["loss"])
    model = VAE(config, encoder=Encoder_VAE_MLP(config))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in np.load(options["weights"]).items()})
    model.to(options["device"]).eval()

    def bound(images: int, samples: int, seed: int) -> list[float]:
        torch.manual_seed(seed)
        with torch.set_grad_enabled(options["grad"]):
            return [float(model.get_nll(x[:images], n_samples=samples, batch_size=options["pythae_batch"]))]

    return bound


def expost_side(options: dict[str, Any], x: torch.Tensor) -> Any:
    from expost.evaluate.likelihood.importance import importance_bound
    from likelihood import build, load_pythae

    model = build(options["loss"], options["latent"])
    load_pythae(model, options["weights"])
    model.to(options["device"]).eval()

    def bound(images: int, samples: int, seed: int) -> list[float]:
        result = importance_bound(model, x[:images], samples=samples, seed=seed, progress=False)
        return result.log_prob.tolist()

    return bound


def main(options: dict[str, Any]) -> None:
    torch.set_num_threads(options["threads"])
    x = torch.from_numpy(np.load(options["data"])).to(options["device"])
    bound = {"pythae": pythae_side, "expost": expost_side}[options["side"]](options, x)

    def measure(images: int, samples: int, seed: int) -> dict[str, Any]:
        cuda = options["device"].startswith("cuda")
        if cuda:
            torch.cuda.synchronize()
        began, cpu = time.perf_counter(), time.process_time()
        values = bound(images, samples, seed)
        if cuda:
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return {"seconds": seconds, "cpu": cpu, "log_prob": float(np.mean(values)), "values": values}

    gate = Gate({"measure": measure})
    gate.rest()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
