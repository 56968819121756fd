"""How many images are at work at once: what networks really take stays within what is said of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from coarse import Coarse
from conftest import tiny_card
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

from dpgan.evaluation import portions
from dpgan.evaluation.features import lite0
from dpgan.evaluation.judges.trained import Trained
from dpgan.evaluation.measure import Generated, Job, Observer
from dpgan.models.generators import Generator, build_generator

GIB = 2**30


@pytest.mark.parametrize(("image_bytes", "memory", "expected"), [(1, 10, 10), (3, 10, 3), (11, 10, 1), (10, 10, 1)])
def test_a_portion_fits_and_has_an_image(image_bytes: int, memory: int, expected: int) -> None:
    assert portions.portion(image_bytes, memory) == expected


def make(kind: str, **widths: int) -> Generator:
    noise = {} if kind == "spade" else {"noise_channels": 8}
    return build_generator(kind, num_classes=35, **noise, **widths).eval()


@torch.no_grad()
def peak(network: nn.Module, work: Callable[[], object]) -> int:
    """Bytes of all tensors that live at once, without the network's own."""
    network.requires_grad_(True)  # the tracker wants it
    tracker = MemTracker()
    root = nn.Module()  # the tracker wants one
    root.network, root.forward = network, work  # type: ignore[method-assign]
    tracker.track_external(root)
    with tracker:
        root()
    total = int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
    return total - sum(value.nbytes for value in network.state_dict().values())


@pytest.mark.parametrize("kind", ["dp", "oasis", "spade"])
@pytest.mark.parametrize("widths", [(16, 16), (8, 16), (16, 8)])
def test_painting_takes_what_is_said(kind: str, widths: tuple[int, int]) -> None:
    generator = make(kind, width=widths[0], pyramid_width=widths[1])
    labels, noise = torch.zeros(2, 64, 128, dtype=torch.uint8), torch.zeros(2, generator.noise_channels)
    said = portions.painting(generator, 64 * 128)
    assert 0.7 * said < peak(generator, lambda: generator(labels, noise)) / 2 < said


def test_looking_and_judging_take_what_is_said() -> None:
    extractor, judge = lite0(), Trained(tiny_card()).eval()
    images = torch.zeros(2, 3, 128, 256)
    taken = peak(extractor.network, lambda: extractor(images)) / 2
    assert 0.3 * portions.extracting(extractor.side) < taken < portions.extracting(extractor.side)
    taken = peak(judge, lambda: judge.predict(images)) / 2
    assert 0.1 * judge.image_bytes(128, 256) < taken < judge.image_bytes(128, 256)  # the published ones take more


def test_the_papers_widths_fit_a_small_machine() -> None:
    """A worker that evaluates a generator of the papers' size at 256x512, an image at a time: it was 10.3 GiB."""
    with torch.device("meta"):
        generator = build_generator("dp", num_classes=35)
    an_image = portions.painting(generator, 256 * 512)
    assert portions.portion(an_image, portions.AT_ONCE) == 1
    assert portions.worker([generator], an_image, images=8) < 2.5 * GIB


def test_no_more_images_are_made_at_once_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, asked = make("dp", width=2, pyramid_width=4), list[int]()
    forward = generator.forward

    def counted(labels: Tensor, noise: Tensor) -> Tensor:
        asked.append(len(labels))
        return forward(labels, noise)

    monkeypatch.setattr(generator, "forward", counted)
    observer = Observer(Generated(generator), (0, 1), Coarse(), None, tiny_card())
    monkeypatch.setattr(portions, "AT_ONCE", 3 * observer.image_bytes(32 * 64) + 1)
    job = Job(range(8), np.zeros((8, 32, 64), np.uint8), np.empty(0, np.uint8))
    assert observer(job).features.shape == (2, 8, Coarse.dimension)
    assert asked == [3, 3, 3, 3, 2, 2]
