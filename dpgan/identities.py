"""Identities: a hash or a record that is equal exactly where two things are the same, each computed here and only here.

| identity | function | must contain |
|---|---|---|
| raw pairs (`dataset_hash`) | `raw_pairs` | sample ids, decoded pixels of photos, label maps and instance maps |
| prepared data (`data_hash`) | `prepared_data` | raw pairs in use, raw id to class index, size, what resizing does |
| features of real photos | `photo_features` | prepared data, which photos or crops, extractor, measuring code |
| judge (`judge_sha256`) | `judge` | weights, kind, classes, configuration: all are in its one file |
| protocol | `protocol`, `protocol_key` | all that decides a score except the generator |
| run | `trains`, `run` | all that decides what is trained |

The functions take plain values. Whatever must change an identity is an argument of its function;
`tests/test_identities.py` changes every input once and checks which identities change.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpgan.files import file_sha256


def raw_pairs(rows: Iterable[Sequence[object]]) -> str:
    """The version of a raw dataset, whatever a card makes of it and however the files are stored.

    rows: of every pair, in any order, its sample id and the sha256 of the decoded pixels of its photo and label map,
    and of its instance map if it has one.
    """
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: str(row[0])):
        digest.update((" ".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()


def prepared_data(pairs: str, id_table: bytes, size: tuple[int, int], resizing: str) -> str:
    """The version of the prepared arrays.

    pairs: `raw_pairs` of those in use. id_table: class index by raw id. size: height, width. resizing: sha256 of what
    it makes of a fixed image.
    """
    return _sha256(f"{id_table.hex()} {size} {pairs} {resizing}")


def photo_features(
    data_hash: str, which: Mapping[str, Any], extractor: str, extractor_sha256: str, code: str, measure: int
) -> str:
    """The key, 32 digits, of features of real photos.

    which: the photos or crops, in values that JSON can hold. code: sha256 of the file that feeds the extractor.
    measure: version of the code that scores, which resizes and crops.
    """
    return _sha256(json.dumps([data_hash, which, extractor, extractor_sha256, code, measure], sort_keys=True))[:32]


def judge(path: Path) -> str:
    """sha256 of a judge's file, whose header holds its kind, name, classes and configuration."""
    return file_sha256(path)


def protocol(
    *,
    measure: int,
    features: str,
    features_sha256: str,
    judge: str,
    judge_sha256: str,
    data_hash: str,
    evaluated: Mapping[int, str],
    void: Iterable[int],
    objects: Mapping[str, Any] | None,
    noise_seed: int,
    noise_seeds: int,
) -> dict[str, Any]:
    """What a score depends on except the generator: two scores compare only if this is equal. JSON can hold it.

    measure: version of the code that scores. evaluated: names of the classes that count, by class index. void: class
    indices that a judge does not read. objects: which crops are scored too, None if none are. noise_seed: the first.
    """
    return {
        "measure": measure,
        "features": features,
        "features_sha256": features_sha256,
        "judge": judge,
        "judge_sha256": judge_sha256,
        "data_hash": data_hash,
        "evaluated": [[index, name] for index, name in evaluated.items()],
        "void": list(void),
        "objects": objects,
        "noise_seed": noise_seed,
        "noise_seeds": noise_seeds,
    }


def is_of_measure(protocol: Mapping[str, Any], measure: int) -> bool:
    """Whether scores were computed by this version of the code that scores; records of dpgan before it had none."""
    return protocol.get("measure") == measure


def protocol_key(protocol: Mapping[str, Any]) -> str:
    """A hash of a protocol, 16 digits."""
    return _of_json(protocol)


def trains(settings: Mapping[str, Any], seed: int, data_hash: str, card: str) -> dict[str, Any]:
    """What a run trains. settings: of the training, in values that JSON can hold. card: its digest."""
    return {"settings": settings, "seed": seed, "data": data_hash, "card": card}


def run(trains: Mapping[str, Any]) -> str:
    """A hash of what is trained, 16 digits: two runs are the same run if it is equal."""
    return _of_json(trains)


# What the numbers of a training come from, once its settings and data are given; below the package's folder.
TRAINING_CODE = (
    "losses.py", "data/loader.py", "data/order.py", "data/pixels.py", "models/discriminators.py", "models/ema.py",
    "models/generators/__init__.py", "models/generators/baselines.py", "models/generators/blocks.py",
    "models/generators/dp.py", "models/layers.py", "models/perceptual.py", "training/assemble.py",
    "training/deepspeed_engine.py", "training/objectives.py", "training/step.py", "training/strategy.py",
)  # fmt: skip


def training_code(package: Path = Path(__file__).parent) -> str:
    """A hash, 16 digits, of the source that trains. Comments, docstrings and layout are no part of it.

    A run resumes under the same code only, unless `run.accept_code` says so; it is not part of the run's name.
    """
    digest = hashlib.sha256()
    for name in TRAINING_CODE:
        tree = ast.parse((package / name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:16]


def _of_json(value: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(value, sort_keys=True))[:16]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
