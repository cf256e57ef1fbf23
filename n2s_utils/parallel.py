"""One run on several processes, as torchrun starts them: each takes its part of every batch, and all stop together."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import torch
from torch import distributed, nn

from n2s_utils.cli import InputError

T = TypeVar("T")


class PeerLost(InputError):
    """Another process of the run is gone."""


@dataclass(frozen=True)
class Group:
    """The processes of a run, `rank` this one of `size`; a single one by itself where there is no torchrun."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """Which crops of a batch are this process's; raises InputError where they do not share out."""
        if batch % self.size:
            raise InputError(f"batch = {batch}: give a multiple of the {self.size} processes")
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over the processes."""
        return nn.parallel.DistributedDataParallel(model) if self.size > 1 else model

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes."""
        if self.size > 1:
            distributed.all_reduce(value)
            value /= self.size
        return value

    def agreed(self, value: T) -> T:
        """The value that the first process has."""
        values = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values)
        return values[0]


SINGLE = Group()


def leave(status: int) -> NoReturn:
    """Exit with `status`, as a process of torchrun at once: in one that ends in the usual way gloo's threads may abort it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextmanager
def group_of(device: str) -> Iterator[Group]:
    """The group that torchrun's environment describes; a process that dies ends the others with one InputError."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    group = Group(distributed.get_rank(), distributed.get_world_size())
    try:
        yield group
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not any(word in str(error) for word in ("peer", "Gloo", "gloo", "NCCL")):
            raise
        raise PeerLost(f"another of the {group.size} processes is gone; the same command goes on from the last checkpoint") from None
    distributed.destroy_process_group()
