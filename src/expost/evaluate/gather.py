"""Work in fixed blocks, shared by the processes of a torch.distributed run, with one result bit for bit for any number of them.

The blocks are those of one process: their size does not depend on how many share them. In round t, process r computes block t·world + r;
the rows are then gathered, and every process takes the blocks of the round in their order. So each number is made from the same batches,
added up in the same order, and every process ends with all of it. What must be equal for that: the kind of machine and device, the number
of threads, and deterministic kernels (those of inference are, unless cuDNN's benchmark mode chooses others in each process).

A failure in one process (a damaged file in its block, a full disk) ends all: they tell each other after every step, where an exception alone
would leave the others waiting for the time-out. Nothing but tensors of numbers is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Processes", "in_order"]


class Processes:
    """The processes that share the work: those of torch.distributed where it is initialised (by torchrun or accelerate), else this one.

    Args:
        alone: leave the others out of it, e.g. where only the main process evaluates.
    """

    def __init__(self, *, alone: bool = False) -> None:
        shared = not alone and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if shared else 0
        self.world = dist.get_world_size() if shared else 1
        nccl = self.world > 1 and dist.get_backend() == "nccl"
        self.place = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    @contextmanager
    def together(self) -> Iterator[None]:
        """A step of every process: if the block raises in one of them, all raise after it."""
        try:
            yield
        except Exception:
            self._first_failed(self.rank)
            raise
        failed = self._first_failed(self.world)
        if failed < self.world:
            raise RuntimeError(f"process {failed} failed, so the others stop too: its own message says why")

    def same(self, *numbers: int) -> None:
        """``ValueError`` in every process unless all were called with the same integers (of 63 bits)."""
        found = self.gather(torch.tensor([numbers], dtype=torch.int64), [1] * self.world)
        if any(not torch.equal(found[0], other) for other in found):
            raise ValueError(
                "the processes were given different images, extractors or options: call this in every process with the same arguments, "
                "or with alone=True in one"
            )

    def agreed(self, flag: bool) -> bool:
        """Whether ``flag`` is true in every process; all must ask. So that none goes into shared work that another leaves out."""
        return all(bool(part.item()) for part in self.gather(torch.tensor([[int(flag)]]), [1] * self.world))

    def gather(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """The (counts[r], d) rows of every process r, on the CPU; ``rows`` are those of this one."""
        if self.world == 1:
            return [rows]
        mine = torch.zeros(max(counts), rows.shape[1], dtype=rows.dtype, device=self.place)
        mine[: len(rows)] = rows
        every = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(every, mine)
        return [part[:count].cpu() for part, count in zip(every, counts, strict=True)]

    def _first_failed(self, rank: int) -> int:
        if self.world == 1:
            return rank
        lowest = torch.tensor(rank, device=self.place)
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        return int(lowest)


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
