"""FID of given features, and features of real photos that are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from benchmarks.measure import Options, Row, take_turns
from dpgan.evaluation.features import Lite0
from dpgan.evaluation.fid import fid
from dpgan.evaluation.reference import References

IMAGES, DIMENSIONS, PHOTOS = 500, 2048, 32


def scores(options: Options) -> Iterator[Row]:
    random = np.random.default_rng(0)
    mixing = random.normal(size=(DIMENSIONS, DIMENSIONS)) / DIMENSIONS**0.5
    x, y = random.normal(size=(2, IMAGES, DIMENSIONS)) @ mixing

    def torch_fidelity() -> None:
        statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (x, y)]
        fid_statistics_to_metric(*statistics, False)

    taken = take_turns({"reference": torch_fidelity, "fid": lambda: fid(x, y)}, options.rounds)
    yield Row(f"FID, {IMAGES} images, {DIMENSIONS} features", taken["fid"], taken["reference"], limit=1.0)

    extractor = Lite0(options.device)
    photos = torch.rand(PHOTOS, 3, 256, 512) * 2 - 1
    with tempfile.TemporaryDirectory() as folder:
        kept = References(Path(folder), "benchmark")
        extract = lambda: extractor(photos).numpy()  # noqa: E731
        works = {"reference": extract, "kept": lambda: kept.features(extractor, {"split": "val"}, extract)}
        taken = take_turns(works, options.rounds)
    yield Row(f"features of {PHOTOS} real photos, kept", taken["kept"], taken["reference"])
