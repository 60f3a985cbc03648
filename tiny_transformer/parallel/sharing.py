"""How processes share the work on one model: each takes its rows of a batch, and the gradients are added up.

`Sharing` is one process that does everything; the others differ from it in three places. `run` is the way into the
model, so that PyTorch's wrappers see each use of the weights. `accumulate` adds up the gradients of the micro-batches,
over all processes too. `gradient_factor` makes up for wrappers that average over processes: the gradient is always
that of the whole batch's loss, divided once by the whole batch's number of targets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.parallel.processes import ALONE, Processes

T = TypeVar("T")


class Sharing:
    """One process, one whole model.

    Attributes:
        processes: who shares.
        gradient_factor: what each loss is multiplied by before its backward pass.
    """

    gradient_factor = 1.0

    def __init__(self, processes: Processes = ALONE) -> None:
        self.processes = processes

    def run(self, compute: Callable[[], T], activity: str, step: int | None = None) -> T:
        """The result of `compute`, which uses the model's weights; what this process does now, its heartbeat tells."""
        self.processes.mark(activity, step)
        result = self._enter(compute)
        self.processes.mark(activity, step)
        return result

    def _enter(self, compute: Callable[[], T]) -> T:
        return compute()

    def accumulate(self, add_gradient: Callable[[int], None], count: int, step: int) -> None:
        """Leave in the weights' `grad` the sum over the micro-batches of all processes.

        Args:
            add_gradient: runs one of this process's micro-batches forward and backward.
            count: how many there are.
            step: for the heartbeat.
        """
        self._add_up(add_gradient, count)
        self.processes.mark("step", step)

    def _add_up(self, add_gradient: Callable[[int], None], count: int) -> None:
        for index in range(count):
            add_gradient(index)

    def add_parts(self, figures: list[float]) -> list[float]:
        """Figures of the whole weights, from the same figures of this process's parts of them."""
        return figures

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors in the first process's main memory, put together one at a time; nothing in the others."""
        self.processes.mark("save")
        collected = {}
        for name, tensor in tensors.items():
            full = whole(tensor.detach())
            if self.processes.is_first:
                collected[name] = full.cpu().contiguous()
        return collected


NOT_SHARED = Sharing()


class _Computation(nn.Module):
    """Everything that is computed with a model's weights passes through here, so that wrappers around it see it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


class Replicated(Sharing):
    """Each process has the whole model; gradients are exchanged while the backward pass goes on
    (`DistributedDataParallel`)."""

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        super().__init__(processes)
        self.gradient_factor = float(processes.world_size)
        self._wrapped = nn.parallel.DistributedDataParallel(_Computation(model), gradient_as_bucket_view=True)

    def _enter(self, compute: Callable[[], T]) -> T:
        return self._wrapped(compute)

    def _add_up(self, add_gradient: Callable[[int], None], count: int) -> None:
        """The processes talk once, in the last micro-batch."""
        for index in range(count):
            with nullcontext() if index == count - 1 else self._wrapped.no_sync():
                add_gradient(index)


class Sharded(Sharing):
    """Each process keeps its part of every weight, gradient and optimizer state; a block's weights are gathered when it
    computes and dropped afterwards (`fully_shard`).

    Gradients are exchanged in every micro-batch: waiting for the last would need memory for whole gradients.
    """

    def __init__(self, model: nn.Module, processes: Processes, hardware: Hardware) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(processes)
        self.gradient_factor = float(processes.world_size)
        mesh = init_device_mesh(hardware.device.type, (processes.world_size,))
        for block in model.get_submodule("model.layers").children():
            fully_shard(block, mesh=mesh)
        self._wrapped: Any = fully_shard(_Computation(model), mesh=mesh)

    def _enter(self, compute: Callable[[], T]) -> T:
        return self._wrapped(compute)

    def add_parts(self, figures: list[float]) -> list[float]:
        """See `Sharing`."""
        return [sum(parts) for parts in zip(*self.processes.gather(figures), strict=True)]


class Repeatable(Sharing):
    """Each process has the whole model; the sum of the gradients is rounded the same way for 1, 2, 4, ... processes.

    Additions are the nodes of a tree over the batch's micro-batches: the first half plus the second half, and so on
    down. A process has a subtree of its own; everybody then adds up the processes' sums, as the tree's top says. The
    price: gradients wait for the end of the backward pass, and one more set of them for each level of the own subtree.
    """

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        super().__init__(processes)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def _add_up(self, add_gradient: Callable[[int], None], count: int) -> None:
        def gradient_of(index: int) -> list[Tensor]:
            add_gradient(index)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
            for parameter in self._parameters:
                parameter.grad = None
            return gradients

        mine = tree_sum(range(count), gradient_of, _add_all)
        for parameter, gradient in zip(self._parameters, mine, strict=True):
            parameter.grad = self._sum_over_processes(gradient)

    def _sum_over_processes(self, gradient: Tensor) -> Tensor:
        if self.processes.world_size == 1:
            return gradient
        parts = [torch.empty_like(gradient) for _ in range(self.processes.world_size)]
        distributed.all_gather(parts, gradient.contiguous())
        return tree_sum(parts, lambda part: part, Tensor.add)


def tree_sum(items: Sequence[Any], value_of: Callable[[Any], T], add: Callable[[T, T], T]) -> T:
    """The sum of the values of `items`, as the sum of the first half plus that of the second; an odd number of them
    from left to right.

    So the sums of equal stretches of a batch are nodes of the whole batch's tree when the number of stretches is a
    power of two.
    """
    if len(items) > 1 and len(items) % 2 == 0:
        middle = len(items) // 2
        return add(tree_sum(items[:middle], value_of, add), tree_sum(items[middle:], value_of, add))
    total = value_of(items[0])
    for item in items[1:]:
        total = add(total, value_of(item))
    return total


def _add_all(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    for one, other in zip(left, right, strict=True):
        one += other
    return left


def share(model: nn.Module, processes: Processes, training: TrainingConfig, hardware: Hardware) -> Sharing:
    """The way of sharing that the config asks for. With `fsdp` the model's parameters are replaced: make optimizers
    afterwards."""
    if training.deterministic:
        return Repeatable(model, processes)
    if processes.world_size == 1:
        return Sharing(processes)
    return Sharded(model, processes, hardware) if training.parallelism == "fsdp" else Replicated(model, processes)


def check_shares(training: TrainingConfig, processes: Processes, hardware: Hardware) -> None:
    """Refuse a batch that these processes cannot share, before anything is read or written.

    Raises:
        UserError: saying which numbers would do.
    """
    world_size, rows = processes.world_size, training.examples_per_step
    if world_size == 1:
        return
    if hardware.device.type == "mps":
        raise UserError("several processes cannot share Apple's GPU", remedy="set training.device=cpu")
    if rows % world_size:
        raise UserError(
            f"{world_size} processes cannot share a batch of {rows} sequences equally",
            where=f"micro_batch_size {training.micro_batch_size} x grad_accum_steps {training.grad_accum_steps}: "
            "the batch of all processes together",
            remedy=f"make micro_batch_size x grad_accum_steps a multiple of {world_size}, or start fewer processes",
        )
    if training.deterministic and (training.grad_accum_steps % world_size or world_size & (world_size - 1)):
        raise UserError(
            f"deterministic training: {world_size} processes cannot share {training.grad_accum_steps} micro-batches",
            where="training.grad_accum_steps",
            remedy="start 1, 2, 4, 8, ... processes and make grad_accum_steps a multiple of that number (with a "
            "smaller micro_batch_size the batch stays the same)",
        )


@contextmanager
def repeatable_arithmetic(training: TrainingConfig) -> Generator[None]:
    """With `deterministic`: operators that give the same bits every time, and on a CPU one thread per process, because
    how many threads share a sum decides how it is rounded."""
    if not training.deterministic:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's products are first asked for
    threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(was_deterministic)


def whole(tensor: Any) -> Tensor:
    """The tensor with all its parts; every process must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Any) -> Tensor:
    """This process's part."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_part(full: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor that every process has, cut and placed as `like` is."""
    if not hasattr(like, "full_tensor"):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
