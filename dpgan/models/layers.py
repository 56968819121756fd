"""Layers that the generator and the discriminator share. Imports torch only: shipped with a registered model."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

INIT_GAIN = 0.02  # xavier_normal, as SPADE and OASIS


def full_precision(x: Tensor) -> Tensor:
    """`x` in fp32, or in fp64 where it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sum_over_workers(x: Tensor) -> Tensor:
    """The sum over all workers, added in the order of the ranks: the same bits everywhere.

    For the few numbers of a BatchNorm; on gloo gathering them takes half as long as an all-reduce.
    """
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.stack(parts).sum(dim=0)


class _GlobalBatchNorm(torch.autograd.Function):
    """Training-mode BatchNorm over the batches of all workers: x [B, C, H, W], weight and bias [C].

    Returns the normalised x in its dtype, and the global mean, variance (biased) and count, fp64 and constant.
    Once the global statistics are known, torch's own kernels for fixed statistics do the work on the pixels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = torch.promote_types(x.dtype, torch.float32)
        mean, var = (t.double() for t in torch.batch_norm_update_stats(x.to(exact), None, None, 0.0))
        count = mean.new_tensor([x.numel() // x.shape[1]])
        # Sums in fp64: E[x^2] - E[x]^2 cancels where a channel's mean is large beside its deviation.
        sums = sum_over_workers(torch.cat([mean * count, (var + mean.square()) * count, count]))
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        var = square - mean.square()
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean.to(exact), var.to(exact), count)
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean.to(exact), var.to(exact), weight, bias, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """With n pixels in all and xhat = (x - mean) / deviation, the sums running over all workers:

        dx = weight / deviation * (grad - sum(grad) / n - xhat * sum(grad * xhat) / n).
        """
        x, weight, mean, var, count = ctx.saved_tensors
        direct, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = sum_over_workers(torch.cat([grad_bias, grad_weight]))
        mean_grad, mean_grad_xhat = (sums / count).to(sums.dtype).chunk(2)
        slope = -weight * torch.rsqrt(var + ctx.eps)
        through_statistics = F.batch_norm(x, mean, var, slope * mean_grad_xhat, slope * mean_grad, eps=ctx.eps)
        return direct + through_statistics, grad_weight, grad_bias, None


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose training statistics are those of the global batch: workers change nothing but speed.

    Workers may hold different numbers of samples. Statistics are fp32 for bf16 and fp16 input.
    `torch.nn.SyncBatchNorm` does the same but refuses CPU tensors.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if input.is_cuda:
            group = dist.group.WORLD
            return SyncBatchNorm.apply(
                input, self.weight, self.bias, self.running_mean, self.running_var, self.eps, momentum,
                group, dist.get_world_size(),
            )  # fmt: skip
        weight = self.weight if self.affine else torch.ones_like(self.running_mean)
        bias = self.bias if self.affine else torch.zeros_like(self.running_mean)
        output, mean, var, count = _GlobalBatchNorm.apply(input, weight, bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), momentum)
        return output


class SpectralNorm(nn.Module):
    """Parametrisation that divides a weight by its largest singular value, u W v (Miyato et al., 2018).

    Every training forward pass does one power iteration, v before u as the released checkpoints expect;
    `torch.nn.utils.parametrizations.spectral_norm` goes u before v and so lags half a step behind.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.register_buffer("u", F.normalize(weight.new_empty(rows).normal_(), dim=0))
        self.register_buffer("v", F.normalize(weight.new_empty(columns).normal_(), dim=0))
        for _ in range(15):  # start from a fair estimate
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """One power iteration."""
        matrix = weight.flatten(1)
        self.v.copy_(F.normalize(matrix.T @ self.u, dim=0))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # bf16 is too coarse for the iteration
            if self.training:
                self.iterate(weight)
            u, v = self.u.clone(), self.v.clone()  # the next iteration must not change what backward needs
            return weight / torch.dot(u, weight.flatten(1) @ v)


def spectral_norm(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution, its weight drawn anew and then spectral-normalised."""
    initialise(conv)  # now, so that the iteration starts from the weight that will be trained
    # unsafe: no trial pass, which the meta device could not do.
    register_parametrization(conv, "weight", SpectralNorm(conv.weight.detach()), unsafe=True)
    return conv


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Weights as SPADE and OASIS draw them: xavier_normal with gain 0.02, bias 0, BatchNorm weight N(1, 0.02)."""
    if isinstance(module, nn.Conv2d) and not is_parametrized(module):
        nn.init.xavier_normal_(module.weight, gain=INIT_GAIN)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d) and module.affine:
        nn.init.normal_(module.weight, 1.0, INIT_GAIN)
        nn.init.zeros_(module.bias)
