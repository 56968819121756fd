"""What this machine can do: the throughput of convolutions, and of copying memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dpgan.evaluation.efficiency import flops, seconds

# Input channels, output channels, height, width: of the networks' largest 3x3 convolutions.
SHAPES = [(64, 128, 256, 512), (256, 128, 128, 256), (512, 256, 64, 128), (1024, 512, 32, 64)]


def throughput(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the fastest of `SHAPES`, forward; the best of five."""
    best = 0.0
    for i, o, height, width in SHAPES:
        x = torch.randn(1, i, height, width, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(o, i, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)

        def work(x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
            with torch.inference_mode():
                F.conv2d(x, weight, padding=1)

        best = max(best, flops(work) / min(seconds(work, device) for _ in range(5)))
    return best


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying 256 MB; the best of five."""
    source = torch.empty(2**26, device=device).fill_(1.0)
    target = torch.empty_like(source).fill_(0.0)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(5))
