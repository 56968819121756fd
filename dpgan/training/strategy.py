"""How gradients of several workers become one update: the only place that knows about DDP."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Engine(Protocol):
    """A loss module and its optimizer: call it for the loss, then `update` with that loss."""

    optimizer: torch.optim.Optimizer

    def __call__(self, *inputs: Any) -> Any: ...

    def update(self, loss: Tensor) -> None: ...


class DDPEngine:
    """Gradients averaged over the workers by DistributedDataParallel, overlapped with the backward pass.

    `module` holds as submodules exactly what `optimizer` trains; its forward is called once an update.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.module: nn.Module = module
        if world_size() > 1:
            self.module = nn.parallel.DistributedDataParallel(
                module,
                device_ids=[device] if device.type == "cuda" else None,
                forward_sync_buffers=False,  # BatchNorm synchronises itself; u and v are equal by construction
            )

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def world_size() -> int:
    """Workers in the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This worker's number in the process group; 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_workers(value: Tensor) -> Tensor:
    """The sum of `value` over the workers, on every worker; `value` itself is overwritten."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def agreed(flag: bool, device: torch.device) -> bool:
    """Whether any worker says so, the same answer on every worker; all of them must ask."""
    return bool(sum_over_workers(torch.tensor(float(flag), device=device)))


def gather_rows(rows: Tensor) -> Tensor:
    """[n_r, ...] of every worker, joined in the order of the ranks, on every worker."""
    if world_size() == 1:
        return rows
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, rows.cpu())
    return torch.cat(parts)
