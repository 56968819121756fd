"""What a photo, a training iteration and their memory cost, beside DP-GAN layer by layer (tests/plain.py)."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from plain import PlainDiscriminator, PlainGenerator, PlainTraining

