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


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the channels of x [B, C, H, W] on a CPU, fp64 [C].

    torch (2.14.1) adds up a channels-last image in fp32, pixel after pixel: in an even area every addition rounds the
    same way, and of the statistics of 256x512 pixels four digits are left. Here some 64 pixels are added like that,
    by the same kernel at the same speed: neighbours count as channels of their own, and their statistics are merged.
    """
    pixels, lanes = x.numel() // x.shape[1], 1
    while pixels % (2 * lanes) == 0 and pixels // lanes >= 128:
        lanes *= 2
    apart = x.permute(0, 2, 3, 1).reshape(-1, lanes, x.shape[1])  # [pixels / lanes, lanes, C]
    exact = torch.promote_types(x.dtype, torch.float32)
    at_once = lanes if x.dtype == exact else max(1, 2**18 // apart[:, 0].numel())  # 1 MB in fp32: it stays in cache
    statistics = []
    for some in apart.split(at_once, dim=1):
        some = some.to(exact).flatten(1).T[None, :, None]
        mean, var = torch.batch_norm_update_stats(some, None, None, 0.0)
        statistics.append(torch.stack([mean, var]).double().view(2, -1, x.shape[1]))
    mean, var = torch.cat(statistics, dim=1)  # [lanes, C]
    return mean.mean(dim=0), var.mean(dim=0) + mean.var(dim=0, correction=0)


class _BatchNorm(torch.autograd.Function):
    """Training-mode BatchNorm over the batches of all workers: x [B, C, H, W] on a CPU, weight and bias [C].

    Returns the normalised x in its dtype, and the global mean, variance (biased) and count, fp64 and constant.
    Once the global statistics are known, torch's own kernels for fixed statistics do the work on the pixels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = torch.promote_types(x.dtype, torch.float32)
        mean, var = batch_statistics(x)
        count = mean.new_tensor([x.numel() // x.shape[1]])
        ctx.workers = dist.get_world_size() if dist.is_initialized() else 1
        if ctx.workers > 1:
            # Sums in fp64: E[x^2] - E[x]^2 cancels where a channel's mean is large beside its deviation.
            sums = sum_over_workers(torch.cat([mean * count, (var + mean.square()) * count, count]))
            count = sums[-1]
            mean, square = (sums[:-1] / count).chunk(2)
            var = square - mean.square()
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean.to(exact), var.to(exact), count)
        ctx.mark_non_differentiable(mean, var, count)
        ctx.set_materialize_grads(False)
        return F.batch_norm(x, mean.to(exact), var.to(exact), weight, bias, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """With n pixels in all and xhat = (x - mean) / deviation, the sums running over all workers:

        dx = weight / deviation * (grad - sum(grad) / n - xhat * sum(grad * xhat) / n).
        """
        x, weight, mean, var, count = ctx.saved_tensors
        alone = ctx.workers == 1
        direct, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, mean, torch.rsqrt(var + ctx.eps), alone, ctx.eps, [True, True, True]
        )
        if alone:
            return direct, grad_weight, grad_bias, None
        sums = sum_over_workers(torch.cat([grad_bias, grad_weight]))
        mean_grad, mean_grad_xhat = (sums / count).to(sums.dtype).chunk(2)
        slope = -weight * torch.rsqrt(var + ctx.eps)
        through_statistics = F.batch_norm(x, mean, var, slope * mean_grad_xhat, slope * mean_grad, eps=ctx.eps)
        return direct + through_statistics, grad_weight, grad_bias, None


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose training statistics are those of the global batch: workers change nothing but speed.

    Workers may hold different numbers of samples. Statistics are fp32 or better, whatever the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        if not self.training or (input.is_cuda and alone):
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if input.is_cuda:  # `torch.nn.SyncBatchNorm` is this too, but refuses CPU tensors
            return SyncBatchNorm.apply(
                input, self.weight, self.bias, self.running_mean, self.running_var, self.eps, momentum,
                dist.group.WORLD, dist.get_world_size(),
            )  # fmt: skip
        weight = self.weight if self.affine else torch.ones_like(self.running_mean)
        bias = self.bias if self.affine else torch.zeros_like(self.running_mean)
        output, mean, var, count = _BatchNorm.apply(input, weight, bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), momentum)
        return output


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution as a product: x [B, I, H, W], channels last in memory, weight [O, I, 1, 1] -> [B, O, H, W].

    In fp32 on one thread torch's own (2.14.1) copies the image, and takes up to three times as long backward.
    """
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class Conv1x1(nn.Conv2d):
    """`conv1x1` with its weights."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return conv1x1(input, self.weight, self.bias)


def channels_last(module: nn.Module) -> None:
    """Weights in the order that convolutions of channels-last images want; in place.

    `module.to(memory_format=...)` gives 1x1 kernels, which lie in memory alike, strides that their gradients lose when
    they are added up, and DDP compares them.
    """
    for parameter in module.parameters():
        if parameter.dim() == 4 and not parameter.is_contiguous(memory_format=torch.channels_last):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def as_rows(weight: Tensor, last: bool) -> Tensor:
    """[O, I, h, w] as a matrix [O, I * h * w] in the order of memory, which is channels last or not: not a copy."""
    return (weight.movedim(1, -1) if last else weight).flatten(1)


def from_rows(rows: Tensor, size: torch.Size, last: bool) -> Tensor:
    """The weight [*, I, h, w] whose `as_rows` these are; `size` is (I, h, w)."""
    inputs, *window = size
    return rows.view(-1, *window, inputs).movedim(-1, 1) if last else rows.view(-1, *size)


class _Divided(torch.autograd.Function):
    """weight [O, N] / sigma, where sigma = u W v and the vectors u [O] and v [N] are constants."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
        divided = weight / sigma
        ctx.save_for_backward(divided, sigma, u, v)
        return divided

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(grad - <grad, weight / sigma> u v^T) / sigma, laid out as the weight: optimizers copy what is not."""
        divided, sigma, u, v = ctx.saved_tensors
        grad = grad.contiguous()
        along = torch.dot(grad.flatten(), divided.flatten())
        return torch.addcmul(grad, (along * u)[:, None], v, value=-1).div_(sigma), None, None, None


class SpectralNorm(nn.Module):
    """Parametrisation that divides a weight by its largest singular value, u W v (Miyato et al., 2018).

    Every training forward pass does one power iteration, v before u as the released checkpoints expect;
    `torch.nn.utils.parametrizations.spectral_norm` goes u before v and so lags half a step behind.
    """

    u: Tensor  # [O]
    v: Tensor  # [I * h * w]

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.register_buffer("u", F.normalize(weight.new_empty(rows).normal_(), dim=0))
        self.register_buffer("v", F.normalize(weight.new_empty(columns).normal_(), dim=0))
        for _ in range(15):  # start from a fair estimate
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One power iteration: the singular value and its vectors u [O] and v [N], v in the order of `as_rows`."""
        last = not weight.is_contiguous()
        rows = as_rows(weight, last)
        v = rows.T @ self.u
        v /= v.norm()
        u = rows @ v
        sigma = u.norm()
        u /= sigma
        self.u.copy_(u)
        self.v.view_as(weight[:1]).copy_(from_rows(v, weight.shape[1:], last))
        return sigma, u, v

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # bf16 is too coarse for the iteration
            last = not weight.is_contiguous()
            rows = as_rows(weight, last)
            if self.training:
                sigma, u, v = self.iterate(weight)
            else:
                u, v = self.u, as_rows(self.v.view_as(weight[:1]), last).flatten()
                sigma = torch.dot(u, rows.detach() @ v)
            return from_rows(_Divided.apply(rows, sigma, u, v), weight.shape[1:], last)


def spectral_norm(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution, its weight drawn anew and then spectral-normalised."""
    initialise(conv)  # now, so that the iteration starts from the weight that will be trained
    # unsafe: no trial pass, which the meta device could not do.
    register_parametrization(conv, "weight", SpectralNorm(conv.weight.detach()), unsafe=True)
    return conv


@torch.no_grad()
def scale_normalised(network: nn.Module, factor: float) -> None:
    """Multiply, in place, the weights that spectral norm divides. What the network computes stays the same."""
    for name, parameter in network.named_parameters():
        if name.endswith("parametrizations.weight.original"):
            parameter.mul_(factor)


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
