"""Models that expost did not train: spoken to through an interface, they are autoencoders like any other.

``wrap`` takes any two ``nn.Module``s, ``from_pythae`` and ``from_diffusers`` the folders of these libraries; ``check`` says whether the result
reconstructs. Densities, samples, metrics and diagnostics then work on it; ``expost wrap`` saves it as a run folder.
"""

from expost.adapt.checking import Check, check
from expost.adapt.diffusers import from_diffusers
from expost.adapt.interface import Interface, interface_of
from expost.adapt.modules import halves, wrap
from expost.adapt.pythae import from_pythae
from expost.adapt.saved import Origin, kind_of, open_source, shape_of

__all__ = [
    "Check",
    "Interface",
    "Origin",
    "check",
    "from_diffusers",
    "from_pythae",
    "halves",
    "interface_of",
    "kind_of",
    "open_source",
    "shape_of",
    "wrap",
]
