"""What the processes that train one model together do as one: rows of each batch, sums over all.

Every process knows the whole batch and draws all of its randomness, works on its own rows, and
averages over the others what depends on the batch: gradients, losses and batch statistics. Shares
are equal, so the average over processes is that over the batch, up to the order of summation. In
a process that trains by itself nothing here does anything.

`launch.py` starts the processes. Shapes: N rows of a batch, W processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""For one that waits for another: longer than any validation. Who ends is noticed otherwise."""

_alone = False


def join(index: int, count: int, meeting: Path) -> None:
    """Makes this process number `index` of `count` that meet through the file `meeting`.

    A file, since a port chosen beforehand may be taken by another program.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=index, world_size=count, timeout=PATIENCE
    )


def count() -> int:
    """Returns how many processes work on this together, 1 for a process by itself."""
    joined = dist.is_available() and dist.is_initialized() and not _alone
    return dist.get_world_size() if joined else 1


def is_first() -> bool:
    """Returns whether this is the process that writes files and decides."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Lets this process work by itself within, as if there were no others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def told(make: Callable[[], T]) -> T:
    """Returns what `make` returns in the first process, which works alone on it; others wait."""
    if count() == 1:
        return make()
    box: list[Any] = [None]
    if is_first():
        with alone():
            box = [make()]
    dist.broadcast_object_list(box, src=0)
    made: T = box[0]
    return made


def barrier() -> None:
    """Waits until all are here."""
    if count() > 1:
        dist.all_reduce(torch.zeros(()))  # on the CPU, whatever the device


def own_rows(num_rows: int) -> Tensor:
    """Returns the numbers of this process's rows, as many for each: the last may repeat one."""
    if count() == 1:
        return torch.arange(num_rows)
    each = -(-num_rows // count())
    return torch.arange(dist.get_rank(), each * count(), count()).clamp_(max=num_rows - 1)


def shard(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns this process's rows of each tensor [N, ...], N a multiple of W: [N/W, ...]."""
    if count() == 1:
        return tensors
    return tuple(each[dist.get_rank() :: count()] for each in tensors)


def spread(own: Tensor) -> Tensor:
    """Returns [N, ...] with this process's rows [N/W, ...] in their places, others zero."""
    if count() == 1:
        return own
    others = [torch.zeros_like(own)] * count()
    others[dist.get_rank()] = own
    return torch.stack(others, dim=1).flatten(0, 1)


def gathered(own: Tensor, num_rows: int) -> Tensor:
    """Returns the rows of all, [num_rows, ...]; each gives those that `own_rows` says."""
    if count() == 1:
        return own
    parts = [torch.empty_like(own.contiguous()) for _ in range(count())]
    dist.all_gather(parts, own.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)[:num_rows]


def averaged(value: Tensor) -> Tensor:
    """Returns the mean of a tensor over all processes; gradients flow back to each of them."""
    if count() == 1:
        return value
    mean: Tensor = _Mean.apply(value)
    return mean


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over all processes."""
    if count() == 1:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    flat = torch.cat([each.flatten() for each in gradients])
    dist.all_reduce(flat)
    flat /= count()
    means = torch.split(flat, [each.numel() for each in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


class _Mean(torch.autograd.Function):
    """The mean over processes. It is its own adjoint: each one's share is 1/W."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        mean = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(mean)
        return mean.div_(count())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Mean.forward(ctx, gradient)


class GlobalBatchNorm(TorchFunctionMode):
    """Within, every batch normalisation in training takes the statistics of the whole batch.

    Whatever module asks for it, those of timm and of users included: names and shapes of what is
    saved stay those of one process.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `function`, or `batch_norm` in its place."""
        del types
        shared = function is functional.batch_norm and count() > 1
        return (batch_norm if shared else function)(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,  # noqa: A002  (names of torch.nn.functional.batch_norm)
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` of own rows [N/W, D, ...] with statistics of all."""
    if not training:
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    axes, shape = [0, *range(2, input.ndim)], [1, -1] + [1] * (input.ndim - 2)
    x = input.float()
    mean = averaged(x.mean(axes))  # [D]
    centred = x - mean.view(shape)
    variance = averaged(centred.square().mean(axes))  # [D]
    if running_mean is not None and running_var is not None:
        size = count() * input.numel() // input.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (size / (size - 1)), momentum)
    gain = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
    normal = centred * gain.view(shape)
    return (normal if bias is None else normal + bias.view(shape)).to(input.dtype)
