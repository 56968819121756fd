"""The cheap evaluation during training, on pairs kept out of the training split and spread over the workers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpgan.data import order
from dpgan.data.pixels import to_float, to_uint8
from dpgan.data.prepare import Split
from dpgan.evaluation.features import lite0
from dpgan.evaluation.fid import fid, kid
from dpgan.evaluation.report import grid
from dpgan.labels import Card
from dpgan.models.generators import Generator
from dpgan.training.strategy import gather_rows, rank, world_size

GRID_ROWS = 6
BATCH = 8
FID, KID = "holdout/fid_lite0", "holdout/kid_lite0"


class Holdout:
    """Scores a generator by FID and KID (lite0) between its images and the photos of the held-out pairs.

    N is small, so FID is biased upwards and only comparable within a run; KID is unbiased and picks `best`. Images are
    painted, and their features computed, on `device`, `BATCH` at a time.
    """

    def __init__(self, data: Split, chosen: np.ndarray, seed: int, device: torch.device) -> None:
        mine = np.array_split(np.arange(len(chosen)), world_size())[rank()]
        self.numbers, self.seed, self.device = range(mine[0], mine[-1] + 1), seed, device
        self.labels = torch.from_numpy(np.stack([data.labels[chosen[i]] for i in mine]))
        self.photos = np.stack([data.images[chosen[i]] for i in mine])
        self.extractor = lite0(device)
        parts = torch.from_numpy(self.photos).split(BATCH)
        self.real = self._gathered([self.extractor(to_float(part.numpy())) for part in parts])

    @staticmethod
    def _gathered(features: list[Tensor]) -> np.ndarray:
        return gather_rows(torch.cat(features)).numpy()

    @torch.no_grad()
    def score(self, generator: Generator, card: Card) -> tuple[dict[str, float], np.ndarray]:
        """(metrics, uint8 sheet [H', W', 3] of label | real | generated); every worker must call it.

        Without metrics if one photo is held out: they compare distributions.
        """
        noise = torch.from_numpy(order.noise_at(self.seed, self.numbers, generator.noise_channels, draw=3))
        found, shown = list[Tensor](), list[np.ndarray]()
        for labels, z in zip(self.labels.split(BATCH), noise.split(BATCH), strict=True):
            fakes = generator(labels.to(self.device), z.to(self.device)).float()
            found.append(self.extractor(fakes))
            shown.append(to_uint8(fakes))
        features = self._gathered(found)
        scores = {FID: fid(self.real, features), KID: kid(self.real, features)} if len(features) > 1 else {}
        rows = slice(0, GRID_ROWS)
        sheet = grid([card.colorize(self.labels[rows].numpy()), self.photos[rows], np.concatenate(shown)[rows]])
        return scores, sheet
