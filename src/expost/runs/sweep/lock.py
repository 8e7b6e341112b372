"""The lock of a run's folder, as sweeps use it: see :mod:`expost.system.locks`."""

from expost.system.locks import NAME, Locked, hold, holder

__all__ = ["NAME", "Locked", "hold", "holder"]
