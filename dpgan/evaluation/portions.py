"""How many images are in work at once: by their pixels, the networks' channels and the memory of the device.

All numbers are of fp32, without gradients. An image always works alone, so a portion never has less than one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from dpgan.models.generators import Generator

PIXELS = 2**20  # of the label maps that are sent to a worker at once
AT_ONCE = 2**30  # bytes that may live at once on a CPU: more images at once would not be faster there
PROCESS = 5 * 2**28  # bytes of a process besides networks and images: Python, torch, Ray, scratch of the kernels

WIDE, PYRAMID = 18, 2  # live floats per pixel and channel of a generator's last block and of its pyramid
READ, VOTES = 256, 4  # live floats per pixel of a judge; copies of its logits
SEEN = 80  # live floats per pixel of a feature extractor's square
LEARNED = 1000  # floats per pixel of a photo that training the judge keeps for its gradients
COMPARED = 16  # live floats per pixel and image of LPIPS


def portion(image_bytes: int, memory: int) -> int:
    """How many images that take `image_bytes` each go into `memory` at once."""
    return max(1, memory // max(image_bytes, 1))


def free(device: torch.device) -> int:
    """Bytes that images may take: `AT_ONCE` on a CPU, half of what is free on a GPU."""
    if device.type == "cpu":
        return AT_ONCE
    unused, _ = torch.cuda.mem_get_info(device)
    return (unused + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) // 2


def painting(generator: Generator, pixels: int) -> int:
    """Bytes while a generator of `build_generator` paints one image: its last block, at full size, takes the most."""
    width, pyramid = (generator.arguments.get(name, 64) for name in ("width", "pyramid_width"))
    return 4 * pixels * (WIDE * width + PYRAMID * pyramid)


def judging(pixels: int, outputs: int) -> int:
    """Bytes while a judge reads one image of so many pixels."""
    return 4 * pixels * (READ + VOTES * outputs)


def extracting(side: int) -> int:
    """Bytes while a feature extractor looks at one square."""
    return 4 * side * side * SEEN


def worker(networks: Iterable[nn.Module], image_bytes: int, images: int) -> int:
    """Bytes of a process that works on jobs of so many images: it holds the networks twice while it loads them."""
    weights = sum(value.nbytes for network in networks for value in network.state_dict().values())
    return PROCESS + 2 * weights + min(images, portion(image_bytes, AT_ONCE)) * image_bytes


def learning(pixels: int) -> int:
    """Bytes of a process that trains the judge `trained` on photos of so many pixels at once."""
    return PROCESS + 4 * pixels * LEARNED
