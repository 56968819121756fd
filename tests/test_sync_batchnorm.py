"""BatchNorm over two gloo workers with uneven batches equals BatchNorm over one with all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dpgan.models.layers import BatchNorm

SPLIT = [3, 1]


def norm_and_batch(affine: bool, momentum: float | None) -> tuple[BatchNorm, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = BatchNorm(5, affine=affine, momentum=momentum)
    if affine:
        torch.nn.init.normal_(norm.weight, 1.0, 0.3, generator=generator)
        torch.nn.init.normal_(norm.bias, 0.0, 0.3, generator=generator)
    x = torch.randn(4, 5, 6, 7, generator=generator) * 2 + 20  # a mean that is large beside the deviation
    return norm, x, torch.randn(4, 5, 6, 7, generator=generator)


def run(norm: BatchNorm, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Two training passes: output, gradients and buffers."""
    for _ in range(2):
        norm.zero_grad()
        x = x.detach().requires_grad_()
        y = norm(x)
        (y * weight).sum().backward()
    assert x.grad is not None
    result = {"y": y.detach(), "x.grad": x.grad} | {name: b.clone() for name, b in norm.named_buffers()}
    return result | {f"{name}.grad": p.grad for name, p in norm.named_parameters() if p.grad is not None}


def worker(rank: int, folder: str, affine: bool, momentum: float | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm, x, weight = norm_and_batch(affine, momentum)
    result = run(norm, x.split(SPLIT)[rank], weight.split(SPLIT)[rank])
    for dtype in (torch.bfloat16, torch.float16):
        assert norm(x.split(SPLIT)[rank].to(dtype)).dtype == dtype
    norm.eval()(x)  # no communication outside training, or the other rank would wait
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("affine", "momentum"), [(True, 0.1), (False, None)])
def test_two_workers_equal_one(tmp_path: Path, affine: bool, momentum: float | None) -> None:
    mp.spawn(worker, args=(str(tmp_path), affine, momentum), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    norm, x, weight = norm_and_batch(affine, momentum)
    for name, exact in run(norm.double(), x.double(), weight.double()).items():
        expected = exact.to(parts[0][name].dtype)
        if name in ("y", "x.grad"):
            ours = torch.cat([part[name] for part in parts])
        elif name.endswith(".grad"):  # a worker's own share: DDP adds them up
            ours = parts[0][name] + parts[1][name]
        else:
            ours = parts[0][name]
            assert torch.equal(ours, parts[1][name]), name
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_fp32_for_half_input(dtype: torch.dtype) -> None:
    norm, x, _ = norm_and_batch(affine=False, momentum=1.0)
    y = norm(x.to(dtype))
    expected = x.to(dtype).float().mean(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected, rtol=0, atol=1e-4)  # bf16 has steps of 0.125 at 20
    assert y.dtype == dtype
