"""What the workers of a training must agree on before its first step, and what to say if they do not.

Rank 0 decides where to start. Every worker loads exactly that, or all of them refuse with one sentence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

import torch

from dpgan.hardware import native_bf16
from dpgan.training.checkpoint import Checkpoint, DamagedError, open_checkpoint
from dpgan.training.strategy import AgreedError, agreed, gathered, rank

# An NFS client may show the old listing of a folder for so long (acdirmax).
SHARED_FOLDER_S = 60.0

Facts = tuple[str, Mapping[str, str]]
"""A worker's node, and what it works with: code, data, library."""


def check_same(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """AgreedError on every worker if one of them `found` other facts than `expected`; all of them must call it."""
    wrong = disagreements(expected, gathered((os.uname().nodename, found)))
    if wrong:
        raise AgreedError(
            f"the workers do not train the same: {'; '.join(wrong)}. Give all nodes the same image, code and prepared "
            "data (docs/cluster.md), and run the same command again"
        )


def disagreements(expected: Mapping[str, str], workers: Sequence[Facts]) -> list[str]:
    """A line for each worker and fact that is not as `expected`; a fact that is not expected must be worker 0's."""
    wanted = {**workers[0][1], **expected}
    return [
        f"worker {number} on node {node} has {name} {value}, not {wanted[name]}"
        for number, (node, facts) in enumerate(workers)
        for name, value in facts.items()
        if value != wanted[name]
    ]


def same_checkpoint(decided: Checkpoint | None, wait_s: float = SHARED_FOLDER_S) -> Checkpoint | None:
    """The checkpoint that rank 0 decided on, found and checked by this worker too; None if it is None.

    All workers must call it. AgreedError on every worker if one of them finds another one, or none, for `wait_s`.
    """
    if decided is None:
        return None
    deadline = time.monotonic() + wait_s
    while (wrong := "" if rank() == 0 else _unlike(decided)) and time.monotonic() < deadline:
        time.sleep(min(1.0, wait_s))
    found = enumerate(gathered((os.uname().nodename, wrong)))
    cannot = [f"for worker {number} on node {node} it {what}" for number, (node, what) in found if what]
    if cannot:
        raise AgreedError(
            f"{decided.path}: training resumes from this checkpoint, and not every worker can: {'; '.join(cannot)}. "
            "The run's folder must be a path that all nodes share (docs/cluster.md); then run the same command again"
        )
    return decided


def _unlike(decided: Checkpoint) -> str:
    """What is wrong with this worker's view of a checkpoint; empty if it is the same, file by file."""
    try:
        if open_checkpoint(decided.path, verify=False).digest != decided.digest:
            return "is another one than for worker 0"
        open_checkpoint(decided.path)
    except DamagedError as error:
        return f"is damaged ({error})" if decided.path.exists() else "is not there"
    return ""


def agreed_precision(setting: str, recorded: str | None, device: torch.device) -> str:
    """fp32, bf16 or fp16, the same on every worker; all of them must call it.

    `auto` becomes what the run is `recorded` to have started with, else bf16 if every worker's hardware multiplies it.
    """
    if setting != "auto":
        return setting
    without = agreed(not native_bf16(device), device)
    return recorded or ("fp32" if without else "bf16")
