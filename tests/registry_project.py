"""A registry with tiny generators, and evaluations of any outcome: what the tests of promotion share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_card
from mlflow import MlflowClient

from dpgan.config import GateSettings
from dpgan.evaluation import MEASURE
from dpgan.evaluation.intervals import Estimate
from dpgan.models.generators import DPGenerator
from dpgan.registry.gate import Evaluation
from dpgan.registry.packaging import Package
from dpgan.registry.promote import Candidate, Promotion, promote
from dpgan.registry.store import tracking_uri
from dpgan.registry.tracking import open_run
from dpgan.registry.versions import Versions

MODEL = "dpgan-toyscapes"
PROTOCOL = {
    "measure": MEASURE, "features": "lite0", "features_sha256": "12" * 32, "judge": "trained",
    "judge_sha256": "ab" * 32, "data_hash": "cd" * 32, "evaluated": [[0, "road"], [1, "bus"]], "void": [],
    "objects": None, "noise_seed": 0, "noise_seeds": 1,
}  # fmt: skip
OTHER = {**PROTOCOL, "data_hash": "ef" * 32}
# As dpgan wrote it before protocols named the measure and the classes.
EARLIER = {
    "features": "lite0", "features_sha256": "12" * 32, "judge": "trained", "judge_sha256": "ab" * 32,
    "data_hash": "cd" * 32, "noise_seed": 0, "noise_seeds": 1, "kid_subsets": 100, "kid_subset_size": 100,
}  # fmt: skip


def estimate(value: float, n: int = 40) -> Estimate:
    """Of two such estimates the difference has an interval of about +-3.5 around it, far less than either's own."""
    shared = np.random.default_rng(1).normal(scale=20, size=n)
    own = np.random.default_rng(int(1000 * value) if math.isfinite(value) else 0).normal(size=n)
    return Estimate(value, (shared + own) / n**0.5, n)


def evaluation(
    fid: float = 100, miou: float = 30, kid: float = 150, classes: Mapping[str, float] | None = None,
    finite: bool = True, protocol: Mapping[str, Any] = PROTOCOL,
) -> Evaluation:  # fmt: skip
    values = {"fid_lite0": fid, "kid_lite0": kid, "miou_trained": miou, "accuracy_trained": 80.0}
    read = {"road": 90.0, "bus": 20.0} if classes is None else classes
    values |= {f"iou_trained/{name}": value for name, value in read.items()}
    return Evaluation({name: estimate(value) for name, value in values.items()}, finite, protocol)


FLOOR = evaluation(fid=200, miou=10, kid=400, classes={"road": 60.0, "bus": 1.0})
CEILING = {"fid_lite0": 20.0, "kid_lite0": 1.0, "miou_trained": 60.0, "accuracy_trained": 95.0,
           "iou_trained/road": 95.0, "iou_trained/bus": 70.0}  # fmt: skip
GOOD, BETTER = evaluation(), evaluation(fid=80)


def content(seed: int) -> Package:
    torch.manual_seed(seed)
    generator = DPGenerator(num_classes=2, noise_channels=1, width=1)
    config = {"generator": {"kind": "dp", "num_classes": 2, "noise_channels": 1, "width": 1}, "dataset": "toyscapes"}
    return Package(generator.state_dict(), {**config, "size": [32, 32], "id_table": [0, 1] + [-1] * 254})


def never(package: Package) -> Evaluation:
    raise AssertionError("the champion was scored again though its scores are known")


class Project:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = open_run(root, "toyscapes", "run", {}, {})
        self.client = MlflowClient(tracking_uri(root))
        self.versions = Versions.of(root, "toyscapes")

    def candidate(self, seed: int, scores: Evaluation) -> Candidate:
        read = {name: score for name, score in FLOOR.scores.items() if name in scores.scores}
        floor = replace(FLOOR, scores=read, protocol=scores.protocol)
        facts = {"git.commit": "c0ffee", "git.dirty": "true", "dataset_hash": "da", "data_hash": "db"}
        return Candidate(tiny_card(), self.run, content(seed), scores, floor, CEILING, facts)

    def promote(
        self, seed: int, scores: Evaluation, rescore: Callable[[Package], Evaluation] = never, approval: bool = False
    ) -> Promotion:
        return promote(self.root, self.candidate(seed, scores), GateSettings(approval=approval), rescore)

    def tags(self, number: int) -> dict[str, str]:
        return dict(self.versions.get(number).tags)

    def count(self) -> int:
        return len(self.versions.all())


def interrupting(at: int) -> type[MlflowClient]:
    """A client that is killed before its writing call number `at`, counted over all of its instances, from 1."""
    calls: Iterator[int] = iter(range(1, 10**6))

    class Killed(MlflowClient):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith(("create_", "set_", "delete_", "update_", "log_")) and next(calls) == at:
                raise KeyboardInterrupt(name)
            return super().__getattribute__(name)

    return Killed
