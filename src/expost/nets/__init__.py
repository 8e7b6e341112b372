"""Networks: plain ``nn.Module`` from x to features and from z to maps; they know nothing about distributions.

An *encoder net* takes x (B, C, H, W) to (B, out), a *decoder net* z (B, latent) to maps (B, out, H, W) before the link, where ``out`` is
what the head asks for. ``small_*`` is the pair to start with on two cores; the networks of papers lie in their folders of ``expost.papers``.
Any other module of the same shapes will do as well.
"""

from expost.fast.layers import Conv2d, ConvTranspose2d, Linear
from expost.nets.convolutional import small_decoder, small_encoder
from expost.nets.mlp import mlp, mlp_decoder, mlp_encoder
from expost.nets.spectral import spectrally_normalised

__all__ = [
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "mlp",
    "mlp_decoder",
    "mlp_encoder",
    "small_decoder",
    "small_encoder",
    "spectrally_normalised",
]
