"""Lossless compression: bits-back coding with any autoencoder whose decoder gives pixels a probability mass.

    compressed = compress(model, images)                # Compressed: bytes, net rate, rate with the seed
    images = decompress(model, compressed.data)         # bit for bit the same

* :mod:`.stack`: pushing and popping values on a stack of bits (constriction's ANS coder).
* :mod:`.networks`: copies of models that compute the same numbers twice.
* :mod:`.layers`: bits-back, level by level, nested autoencoders and mixture priors included.
* :mod:`.container`: the file format.
* :mod:`.compress`: all images of a set.
* :mod:`.peers`: gzip, bz2, lzma, PNG, WebP on the same images.
"""

from expost.codec.compress import Compressed, compress, decompress, negative_elbo, read_compressed, write_compressed
from expost.codec.peers import general_purpose

__all__ = ["Compressed", "compress", "decompress", "general_purpose", "negative_elbo", "read_compressed", "write_compressed"]
