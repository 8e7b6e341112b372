"""Data sets as tensors: ``load("mnist")`` gives three checked splits of ``uint8`` images (or floating points) with a hash and notes.

``load`` takes a name (:func:`names`), a data set on the Hugging Face hub, or a local folder or file of parquet tables, pictures or arrays.
The toy densities of :mod:`expost.data.toy` are also there as functions on a grid.
"""

from expost.data import toy
from expost.data.base import Dataset, Split
from expost.data.loading import load, names

__all__ = ["Dataset", "Split", "load", "names", "toy"]
