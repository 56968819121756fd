"""How gradients of several workers become one update: DDP here, DeepSpeed in `deepspeed_engine.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpgan.errors import UserError

T = TypeVar("T")


class AgreedError(UserError):
    """A UserError that every worker raises: a restart of the workers would not change it."""


class Engine(Protocol):
    """A loss module and its optimizer. An update is a forward and a backward pass a micro-batch, then `step`.

    The gradients of the micro-batches add up, and `step` takes their mean over the workers: a loss that is to be a
    mean over the global batch is weighted accordingly before `backward`.
    """

    optimizer: torch.optim.Optimizer  # whose `param_groups` hold the rate
    skipped: int  # updates left out

    def __call__(self, *inputs: Any, last: bool) -> Any:
        """The loss module's output; `last` says that no micro-batch of this update follows."""

    def backward(self, loss: Tensor) -> None: ...

    def step(self) -> bool:
        """Update, and forget the gradients. False where they are not finite, on all workers: nothing has changed."""

    def state(self) -> dict[str, Tensor]:
        """A copy of the optimizer's state, whole and on the CPU, whatever the strategy. Every worker must call it."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` of any strategy gave, after the module's weights; every worker must call it."""


class DDPEngine:
    """Gradients averaged over the workers by DistributedDataParallel, overlapped with the backward pass.

    `module` holds as submodules exactly what `optimizer` trains. An update whose gradients are not finite is left
    out: DDP has averaged them by then, so that all workers see the same ones and agree. With `fp16` the loss is scaled.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, fp16: bool = False
    ) -> None:
        self.optimizer, self.skipped = optimizer, 0
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        self.module, self.ddp = module, None
        if world_size() > 1:
            self.ddp = nn.parallel.DistributedDataParallel(
                module,
                device_ids=[device] if device.type == "cuda" else None,
                forward_sync_buffers=False,  # BatchNorm synchronises itself; u and v are equal by construction
            )

    def __call__(self, *inputs: Any, last: bool = True) -> Any:
        if self.ddp is None:
            return self.module(*inputs)
        with nullcontext() if last else self.ddp.no_sync():  # the forward pass decides what backward communicates
            return self.ddp(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> bool:
        if self.scaler.is_enabled():
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            moved = self.scaler.get_scale() >= scale
        else:
            moved = finite_gradients(self.optimizer)
            if moved:
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += not moved
        return moved

    def state(self) -> dict[str, Tensor]:
        return flat_state(self.optimizer) | {
            f"scaler.{name}": torch.tensor(value) for name, value in self.scaler.state_dict().items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        load_state(self.optimizer, state)
        if self.scaler.is_enabled() and "scaler.scale" in state:
            scaler = {name: state[f"scaler.{name}"].item() for name in self.scaler.state_dict()}
            self.scaler.load_state_dict(scaler)


def finite_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether all gradients of the optimizer's parameters are finite numbers."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(nn.utils.get_total_norm(gradients, norm_type=1.0).isfinite())


def flat_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state: `<number of the parameter>.<name>` -> tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": copied(value) for i, entry in state.items() for name, value in entry.items()}


def copied(value: Tensor) -> Tensor:
    """A copy on the CPU, contiguous: training goes on while it is being written."""
    return value.detach().clone(memory_format=torch.contiguous_format).cpu()


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `flat_state` took; rates are set anew by every step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nested: dict[int, dict[str, Tensor]] = {}
    for number, name, value in entries(state):
        parameter = parameters[number]
        if value.shape == parameter.shape:  # in the parameter's memory format, as the fused kernels expect it
            value = torch.empty_like(parameter).copy_(value)
        nested.setdefault(number, {})[name] = value
    optimizer.load_state_dict({"state": nested, "param_groups": optimizer.state_dict()["param_groups"]})


def entries(state: Mapping[str, Tensor]) -> list[tuple[int, str, Tensor]]:
    """The parameters' part of a flat state: (number of the parameter, name, value)."""
    keys = {key: key.partition(".") for key in state}
    return [(int(number), name, state[key]) for key, (number, _, name) in keys.items() if number.isdigit()]


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


def gathered(value: T) -> list[T]:
    """`value` of every worker, in the order of the ranks, on every worker; all of them must call it."""
    if world_size() == 1:
        return [value]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, value)
    return parts


def on_rank_0(act: Callable[[], T]) -> T:
    """What `act` returns on rank 0, on every worker; all of them must call it. The others do not run it.

    A UserError of `act`, and an OSError such as that of a full disk, is raised on every worker as an AgreedError.
    """
    result: T | AgreedError | None = None
    if rank() == 0:
        try:
            result = act()
        except UserError as error:
            result = AgreedError(str(error))
        except OSError as error:
            result = AgreedError(f"{error}: what was saved before is whole; fix that and run the same command again")
    answer: Any = gathered(result)[0]
    if isinstance(answer, AgreedError):
        raise answer
    return cast(T, answer)


def gather_rows(rows: Tensor) -> Tensor:
    """[n_r, ...] of every worker, joined in the order of the ranks, on every worker."""
    return rows if world_size() == 1 else torch.cat(gathered(rows.cpu()))


def broadcast_tensors(module: nn.Module) -> None:
    """Give every worker rank 0's parameters and buffers of `module`; all of them must call it."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.detach(), src=0)
