"""The exponential moving average of the generator, the network that is evaluated and released."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, over parameters; buffers are copied.

    An average of unit vectors is not one, so spectral norm's u and v are taken as they are. BatchNorm statistics
    of the average are those of `recollect_statistics`.
    """
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    torch._foreach_copy_(list(average.buffers()), list(model.buffers()))


@torch.no_grad()
def recollect_statistics(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """BatchNorm statistics of the averaged weights: the mean over `batches` of (labels, noise).

    Only BatchNorm runs in training mode, so spectral norm's vectors stay as they are. Modes and momenta are put
    back at the end.
    """
    modes = {module: module.training for module in model.modules()}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # cumulative
    for labels, noise in batches:
        model(labels, noise)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
