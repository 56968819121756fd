"""Photos as stored (uint8 [B, H, W, 3]) and as networks see them (float [B, 3, H, W] in [-1, 1])."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_float(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1]; a copy, so a read-only memory map will do."""
    return torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """Float [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    pixels = images.float().add(1).mul(127.5).round().clamp(0, 255)
    return pixels.byte().permute(0, 2, 3, 1).cpu().numpy()
