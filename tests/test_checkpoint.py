"""Checkpoints: exact, complete or not there, and never loaded when altered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dpgan.training.checkpoint import Checkpoints, load_state
from dpgan.training.strategy import DDPEngine


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    # channels_last, as in training: a fused optimizer expects its state in the memory format of the weights
    module = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        advance(module, optimizer)
    return module, optimizer


def advance(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module(torch.linspace(-1, 1, 2 * 4 * 5 * 5).view(2, 4, 5, 5)).square().sum().backward()
    optimizer.step()


def save(checkpoints: Checkpoints, step: int) -> Path:
    module, optimizer = trained(step)
    return checkpoints.save(step, {"m": module}, {"o": engine(module, optimizer).state()}, {"best": None})


def engine(module: nn.Module, optimizer: torch.optim.Optimizer) -> DDPEngine:
    return DDPEngine(module, optimizer, torch.device("cpu"))


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    path = save(Checkpoints(tmp_path), 3)
    module, optimizer = trained(0)
    load_state(module, path / "m.safetensors")
    engine(module, optimizer).load(load_file(path / "o.safetensors"))
    advance(module, optimizer)
    expected, _ = trained(4)
    assert torch.equal(module.weight, expected.weight)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    found = checkpoints.newest()
    assert found is not None
    assert found[1]["step"] == 3


def test_an_altered_checkpoint_is_passed_over_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    weights = save(checkpoints, 2) / "m.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = checkpoints.newest()
    assert found is not None
    assert found[1]["step"] == 1
    assert "m.safetensors" in capsys.readouterr().out


def test_what_was_interrupted_is_never_loaded_and_swept_later(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".step_00000009.123").mkdir()
    (tmp_path / "step_00000008").mkdir()  # without a manifest
    assert checkpoints.newest() is None
    save(checkpoints, 1)
    assert not (tmp_path / ".step_00000009.123").exists()
    found = checkpoints.newest()
    assert found is not None
    assert found[1]["step"] == 1
