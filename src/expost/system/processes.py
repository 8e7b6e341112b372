"""The processes that work together: those that torchrun started, else this one alone.

A failure in one process (a damaged file, a full disk, a folder that is taken) ends all: they tell each other after every step, where an
exception alone would leave the others waiting for the time-out. Nothing but tensors of numbers is exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from expost.system.interrupt import Interruptible

__all__ = ["OtherFailed", "Processes", "apart", "join", "leave"]

T = TypeVar("T")
_APART: ContextVar[bool] = ContextVar("apart", default=False)


class OtherFailed(RuntimeError):
    """Another process failed, and says itself why."""


def join() -> None:
    """Meet the processes that torchrun started beside this one, unless that was done; where there are none, nothing happens."""
    if _APART.get() or int(os.environ.get("WORLD_SIZE") or 1) < 2 or dist.is_initialized():
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")


def leave() -> None:
    """Part from the others at the end; who has left cannot join again."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def apart() -> Iterator[None]:
    """Inside the block this process works by itself, whatever others do meanwhile: what is fitted there is what one process would fit."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


class Processes:
    """The processes that share the work: those of torch.distributed where it is initialised (by :func:`join`), else this one.

    Args:
        alone: leave the others out of it, e.g. where only the main process evaluates.

    Attributes:
        rank: number of this process.
        world: how many there are.
    """

    def __init__(self, *, alone: bool = False) -> None:
        shared = not alone and not _APART.get() and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if shared else 0
        self.world = dist.get_world_size() if shared else 1
        nccl = self.world > 1 and dist.get_backend() == "nccl"
        self.place = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    @property
    def main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

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
            raise OtherFailed(f"process {failed} failed, so the others stop too: its own message says why")

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
        return not self.noticed(not flag)

    def noticed(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process; all must ask."""
        return bool(self._highest(int(flag)))

    def led(self, work: Callable[[Callable[[], bool]], T]) -> T | None:
        """Long ``work`` of the main process, for which the others wait, however long it takes: its value there, None elsewhere.

        ``work`` is given a function to call between its steps, which answers whether any process was interrupted; then
        it raises ``KeyboardInterrupt``, and so do the others. An interrupt that comes too late for it is raised when it is done.
        """
        going, over, stop = 0, 1, 2
        with self.together(), Interruptible() as interrupt:
            heard = going
            if not self.main:
                while heard == going:
                    heard = self._highest(stop if interrupt.requested else going)
                if heard == stop:
                    raise KeyboardInterrupt
                return None

            def interrupted() -> bool:
                nonlocal heard
                heard = self._highest(stop if interrupt.requested else going)
                return heard == stop

            try:
                made = work(interrupted)
            except BaseException as error:
                if heard == going:
                    self._highest(over if isinstance(error, Exception) else stop)
                raise
            if heard == stop or self._highest(stop if interrupt.requested else over) == stop:
                raise KeyboardInterrupt
            return made

    def _highest(self, number: int) -> int:
        """The highest of the processes' numbers."""
        if self.world == 1:
            return number
        found = torch.tensor(number, device=self.place)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        if self.world == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world

    def from_main(self, value: Tensor) -> Tensor:
        """The main process's tensor, in every process."""
        if self.world == 1:
            return value
        value = value.clone()
        dist.broadcast(value, 0)
        return value

    def wait(self) -> None:
        """Until every process has come here."""
        if self.world > 1:
            dist.barrier()

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
