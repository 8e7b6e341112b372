"""Networks: plain ``nn.Module`` from x to features and from z to maps; they know nothing about distributions.

An *encoder net* takes x (B, C, H, W) to (B, out), a *decoder net* z (B, latent) to maps (B, out, H, W) before the link, where ``out`` is
what the head asks for. The paper's nets are named after their first author; ``small_*`` is the pair to start with on two cores.
Any other module of the same shapes will do as well.
"""

from expost.papers.bozkurt2018.nets import BOZKURT_HIDDEN, bozkurt_decoder, bozkurt_encoder
from expost.papers.dai2019.nets import dai_decoder, dai_encoder, dai_second_decoder, dai_second_encoder
from expost.papers.dai2019.residual import dai_residual_decoder, dai_residual_encoder, dai_wae_decoder, dai_wae_encoder
from expost.papers.ghosh2020.nets import ghosh_celeba_decoder, ghosh_celeba_encoder, ghosh_decoder, ghosh_encoder
from expost.fast.layers import Conv2d, ConvTranspose2d, Linear
from expost.papers.manoj2018.nets import manoj_decoder, manoj_encoder, manoj_fc_decoder, manoj_fc_encoder
from expost.nets.mlp import mlp, mlp_decoder, mlp_encoder
from expost.nets.convolutional import small_decoder, small_encoder
from expost.nets.spectral import spectrally_normalised
from expost.papers.yu2020.squeezed import maps_decoder, maps_encoder, squeezed_decoder, squeezed_encoder
from expost.papers.yu2020.nets import yu_decoder, yu_encoder

__all__ = [
    "BOZKURT_HIDDEN",
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "bozkurt_decoder",
    "bozkurt_encoder",
    "dai_decoder",
    "dai_encoder",
    "dai_residual_decoder",
    "dai_residual_encoder",
    "dai_second_decoder",
    "dai_second_encoder",
    "dai_wae_decoder",
    "dai_wae_encoder",
    "ghosh_celeba_decoder",
    "ghosh_celeba_encoder",
    "ghosh_decoder",
    "ghosh_encoder",
    "manoj_decoder",
    "manoj_encoder",
    "manoj_fc_decoder",
    "manoj_fc_encoder",
    "maps_decoder",
    "maps_encoder",
    "mlp",
    "mlp_decoder",
    "mlp_encoder",
    "small_decoder",
    "small_encoder",
    "spectrally_normalised",
    "squeezed_decoder",
    "squeezed_encoder",
    "yu_decoder",
    "yu_encoder",
]
