r"""WAE-GAN, also the adversarial autoencoder: a critic on codes plays against the encoder.

critic:  minimise -log D(z_p) - log(1 - D(z_q)),  z_p ~ p(z), z_q = encode(x);  D = sigmoid(critic)
model:   minimise -log p(x | z_q) - weight · log D(z_q)                        (Tolstikhin et al. 2018, alg. 1; Makhzani et al. 2016)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expost.autoencoder import Autoencoder
from expost.objectives.base import Loss, Objective, Player, distortion
from expost.system.schema import Meta

__all__ = ["Adversarial"]


@dataclass(frozen=True)
class Adversarial(Objective):
    """Match the codes to the prior by a critic.

    Args:
        critic: codes (n, d) -> logits (n, 1) or (n,); owned by the objective, trained and saved with the run.
        weight: λ of the encoder's penalty, nats per example.
    """

    critic: nn.Module
    weight: Annotated[float, Meta(ge=0)] = 10.0

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        z = model.encode(x).rsample()
        miss = distortion(model.decode(z), x)
        fool = F.softplus(-self._logits(z))
        return Loss(miss + self.weight * fool, {"distortion": miss, "fool": fool})

    def critic_loss(self, model: Autoencoder, x: Tensor) -> Loss:
        """Binary cross-entropy of the critic in nats per example; ln 4 when it cannot tell codes from prior samples."""
        with torch.no_grad():
            z = model.encode(x).sample()
            ideal = model.latent().sample((len(z),))
        total = F.softplus(-self._logits(ideal)) + F.softplus(self._logits(z))
        return Loss(total, {"critic": total})

    def _logits(self, z: Tensor) -> Tensor:
        return self.critic(z).reshape(len(z))

    def players(self, model: Autoencoder) -> tuple[Player, ...]:
        return (Player("model", model, self), Player("critic", self.critic, self.critic_loss))

    def modules(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}
