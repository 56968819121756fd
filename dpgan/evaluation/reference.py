"""Features of the real photos, kept on disk: every evaluation of a dataset compares with the same ones."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpgan.errors import UserError
from dpgan.evaluation import MEASURE
from dpgan.evaluation.features import FeatureExtractor
from dpgan.files import file_sha256
from dpgan.identities import photo_features


@dataclass(frozen=True)
class References:
    """A folder of features, each file named by the hash of all that they depend on.

    That is the data (`data_hash`), which photos of it, the extractor's weights, the code that feeds them, and the
    version of the measure: a changed dataset or extractor never reads an old file. No stage owns the folder, so that
    DVC leaves it between runs.
    """

    folder: Path
    data_hash: str

    def path(self, extractor: FeatureExtractor, which: dict[str, Any]) -> Path:
        """The file of the features of the photos that `which` describes, in values that JSON can hold."""
        code = file_sha256(Path(inspect.getfile(type(extractor))))
        key = photo_features(self.data_hash, which, extractor.name, extractor.digest, code, MEASURE)
        return self.folder / f"{extractor.name}-{key}.npy"

    def features(
        self, extractor: FeatureExtractor, which: dict[str, Any], extract: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """float64 [N, D]: from the file, or from `extract`, whose result is kept for the next time.

        The file is there whole or not at all. UserError where it has been damaged since.
        """
        path = self.path(extractor, which)
        if path.exists():
            try:
                return np.asarray(np.load(path, allow_pickle=False))
            except (ValueError, EOFError) as error:
                raise UserError(f"{path}: damaged ({error}); delete it, and it is made again") from None
        features = extract()
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.save(file, features)
        part.rename(path)
        return features
