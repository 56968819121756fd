"""dpgan.evaluation.efficiency: parameters, FLOPs, latency and memory of generators, side by side."""

from __future__ import annotations

import pytest
import torch

from dpgan.evaluation.efficiency import costs
from dpgan.models.generators import Generator, build_generator

CPU = torch.device("cpu")


def generator(kind: str, width: int = 4) -> Generator:
    own = {} if kind == "spade" else {"noise_channels": 8}
    return build_generator(kind=kind, num_classes=5, width=width, pyramid_width=8, **own).eval()


class OneConvolution(Generator):
    """Its costs can be counted by hand: 3 -> 7 channels, 3x3, with bias."""

    num_classes, noise_channels = 3, 2

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 7, 3, padding=1)

    def forward(self, labels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        one_hot = torch.nn.functional.one_hot(labels.long(), 3).permute(0, 3, 1, 2).float()
        return self.layer(one_hot)


def test_counted_by_hand() -> None:
    cost = costs({"one": OneConvolution().eval()}, (16, 32), CPU, batch=2, rounds=3)["one"]
    assert cost.parameters == 7 * 3 * 9 + 7
    assert cost.flops == 2 * 2 * 16 * 32 * 7 * 3 * 9
    pixels = 2 * 16 * 32
    at_least = 4 * cost.parameters + pixels * (4 * 3 + 4 * 7)
    assert at_least <= cost.peak_memory <= at_least + pixels * (8 * 3 + 8 + 4 * 3)  # one-hot in int64 may still live
    assert cost.relative == 1
    assert 0 < cost.latency_ms_low <= cost.latency_ms <= cost.latency_ms_high


def test_the_first_is_the_measure_and_more_work_takes_longer() -> None:
    found = costs({"narrow": generator("dp", 2), "wide": generator("dp", 24)}, (64, 64), CPU, rounds=3)
    assert found["narrow"].relative == 1
    assert found["wide"].relative > 1.2
    assert found["wide"].flops > 5 * found["narrow"].flops
    assert found["wide"].peak_memory > 2 * found["narrow"].peak_memory


@pytest.mark.parametrize("kind", ["dp", "oasis", "spade"])
def test_every_generator(kind: str) -> None:
    cost = costs({kind: generator(kind)}, (32, 64), CPU, rounds=1)[kind]
    assert cost.flops > 0
    assert cost.peak_memory > 4 * cost.parameters


def test_a_bound_on_time_leaves_rounds_and_generators_out() -> None:
    now = iter(range(1000))
    found = costs({"one": OneConvolution().eval(), "two": OneConvolution().eval()}, (16, 32), CPU, within_s=4,
                  clock=lambda: float(next(now)))  # fmt: skip
    assert {name: cost.rounds for name, cost in found.items()} == {"one": 1, "two": 1}
    found = costs({"one": OneConvolution().eval(), "two": OneConvolution().eval()}, (16, 32), CPU, within_s=0)
    assert list(found) == ["one"]
    assert found["one"].latency_ms > 0
    assert found["one"].flops > 0
