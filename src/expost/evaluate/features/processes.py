"""Work in fixed blocks, shared by the processes of a torch.distributed run, with one result bit for bit for any number of them.

The blocks are those of one process: their size does not depend on how many share them. In round t, process r computes block t·world + r;
the rows are then gathered, and every process takes the blocks of the round in their order. So each number is made from the same batches,
added up in the same order, and every process ends with all of it. What must be equal for that: the kind of machine and device, the number
of threads, and deterministic kernels (those of inference are, unless cuDNN's benchmark mode chooses others in each process).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from expost.system.processes import Processes

__all__ = ["Processes", "in_order"]


def in_order(
    processes: Processes, counts: Sequence[int], dim: int, compute: Callable[[int], Tensor], consume: Callable[[Tensor], None]
) -> None:
    """``consume`` the rows of all blocks in order, in every process; each ``compute``s its share.

    Args:
        counts: rows of every block.
        dim: columns.
        compute: number of a block -> its (count, dim) float32 rows.
        consume: called with every block in turn, in every process.
    """
    for first in range(0, len(counts), processes.world):
        mine = first + processes.rank
        with processes.together():
            rows = compute(mine) if mine < len(counts) else torch.empty(0, dim)
        sizes = [*counts[first : first + processes.world]]
        parts = processes.gather(rows, sizes + [0] * (processes.world - len(sizes)))
        with processes.together():
            for part in parts[: len(sizes)]:
                consume(part)
