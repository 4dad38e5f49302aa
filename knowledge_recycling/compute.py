"""Devices and precision through lightning-fabric; the loops stay visible."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
from typing import Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pydantic import PositiveInt
from torch import Tensor, nn

from knowledge_recycling import ranks
from knowledge_recycling.config import Config
from knowledge_recycling.errors import RecipeError

ModuleT = TypeVar("ModuleT", bound=nn.Module)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


class ComputeConfig(Config):
    """Where and how to compute."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """`auto` takes bf16 autocast where the processor has bf16 instructions."""
    threads: PositiveInt | None = None
    """CPU threads of torch, shared by the workers, or of each worker of a running cluster and of
    each of several `devices`; unset: all cores, shared, and 1 for each worker of a running
    cluster."""
    compile: bool = False
    """Classifiers and the flow's network are compiled by torch, which takes up to a minute for each
    the first time. It does not pay on a processor (docs/performance.md); on a GPU it was not
    tried."""
    devices: PositiveInt = 1
    """Processes that train one model together, on a GPU each: teacher, each generator and student.
    Each batch is shared among them; docs/cluster.md."""
    workers: PositiveInt | None = None
    """Candidates, tuning trials and shadows done at the same time, each by a process with its
    share of the threads; unset: shadows one per core on a processor and 1 on a GPU, all others
    one after the other in this process, unless a `backend` is named."""
    backend: Literal["auto", "loky", "ray", "dask"] = "auto"
    """Who starts the workers: joblib's `loky` on this machine, or a cluster of Ray or Dask (extras
    of these names); `auto` is `loky` wherever there are several workers."""
    address: str | None = None
    """A running cluster, such as "10.0.0.1:6379" of Ray or "tcp://10.0.0.1:8786" of Dask; unset:
    one is started on this machine for the time of the run."""


def make_fabric(config: ComputeConfig, *, devices: int = 1) -> Fabric:
    """Returns the fabric that every training loop and objective of a run uses.

    With several `devices` it is that of one of as many processes that have joined (`ranks.join`).

    Raises:
        RecipeError: A GPU is asked for and there is none, or there are too few, or networks are to
            be compiled and there is no compiler.
    """
    keep_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.accelerator == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "there is no GPU that torch can use",
            where="compute.accelerator",
            expected="a CUDA device",
            got="none",
            next_step='leave the key out, or set it to "auto" or "cpu"',
        )
    on_gpu = config.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu and config.devices > torch.cuda.device_count():
        raise RecipeError(
            "there are fewer GPUs than processes to train one model",
            where="compute.devices",
            expected=f"at most {torch.cuda.device_count()}",
            got=config.devices,
            next_step="set it lower",
        )
    if config.compile and not on_gpu and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise RecipeError(
            "torch finds no C++ compiler",
            where="compute.compile",
            expected="g++, or what the variable CXX names",
            got="none",
            next_step="leave the key out: on a processor compiling does not pay",
        )
    precision = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if has_fast_bf16(on_gpu=on_gpu) else "32-true"
    # fabric says which precision it takes, on standard error, each time it is made
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    if devices == 1:
        return Fabric(accelerator=config.accelerator, devices=1, precision=precision)
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=devices,
        strategy="ddp",
        precision=precision,
        plugins=[LightningEnvironment()],  # and not what a cluster's variables suggest
    )
    fabric.launch()
    return fabric


def keep_memory() -> None:
    """Has glibc's allocator keep what torch frees, where that is the allocator.

    Otherwise each step gives megabytes back to the system and takes them again page by page, up to
    a sixth of its time (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if not libc.mallopt(M_MMAP_THRESHOLD, 2**30):
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # older versions refuse more for single blocks
    libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def has_fast_bf16(*, on_gpu: bool) -> bool:
    """Returns whether bf16 is faster than fp32 here; emulated bf16 convolutions are 10x slower."""
    if on_gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def place(module: ModuleT, fabric: Fabric) -> ModuleT:
    """Moves `module` to the fabric's device in channels-last layout and returns it."""
    module.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def descend(
    loss: Tensor, optimizer: torch.optim.Optimizer, *, max_norm: float | None = None
) -> None:
    """Takes one optimiser step down the gradient of `loss`, its norm clipped to `max_norm`.

    Of several processes that train together, each has the loss of its rows.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    ranks.average_gradients(parameters)
    if max_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
