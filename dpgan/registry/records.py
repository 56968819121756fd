"""What is known of a model version: its evaluations, one a protocol, and what was decided about it.

What paired comparisons need of an evaluation is too large for a tag. It is an artifact of the version's run, and the
version's tag `scores.<hash of the protocol>` names it with its hash: what the tag says is there, whole.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from dpgan.errors import UserError
from dpgan.evaluation.intervals import load_estimates, save_estimates
from dpgan.files import file_sha256
from dpgan.registry.gate import Evaluation, Verdict
from dpgan.registry.versions import Versions

PROMOTED, REFUSED, AWAITS = "promoted", "refused", "awaits approval"
VERDICT, REASONS, ROLLED_BACK = "verdict", "reasons", "rolled_back"
# A human's decision over the gate, or after it; the gate's own verdict stays beside it.
APPROVAL = ("approval.reason", "approval.by", "approval.at")
_SCORES = "scores."


@dataclass(frozen=True)
class Recorded:
    """An evaluation of a version as its tag tells it."""

    protocol: dict[str, Any]
    main: dict[str, float]  # FID, KID and mIoU by full name
    finite: bool
    artifact: str
    sha256: str
    at: str  # UTC, ISO 8601


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def recorded(version: ModelVersion) -> dict[str, Recorded]:
    """What a version scored, by the hash of the protocol; the newest evaluation first."""
    tags = {k.removeprefix(_SCORES): v for k, v in version.tags.items() if k.startswith(_SCORES)}
    found = {key: Recorded(**json.loads(value)) for key, value in tags.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].at, reverse=True))


def record(versions: Versions, number: int, evaluation: Evaluation) -> None:
    """Keeps an evaluation with a version; a later one under the same protocol takes its place."""
    version = versions.get(number)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / f"{evaluation.key}.safetensors"
        save_estimates(evaluation.scores, file)
        sha256 = file_sha256(file)
        # Named by its content: it cannot take the place of one that a tag still names.
        file = file.rename(file.with_stem(f"{evaluation.key}-{sha256[:16]}"))
        folder = f"scores/version-{number}"
        tag = f"{_SCORES}{evaluation.key}"
        if tag in version.tags and json.loads(version.tags[tag])["sha256"] == sha256:
            return
        versions.client.log_artifact(version.run_id, str(file), folder)
        main = {name: evaluation.scores[name].value for name in evaluation.main if name in evaluation.scores}
        brief = Recorded(dict(evaluation.protocol), main, evaluation.finite, f"{folder}/{file.name}", sha256, now())
    versions.tag(number, {tag: json.dumps(asdict(brief))})


def evaluation_of(versions: Versions, number: int, key: str) -> Evaluation | None:
    """What a version scored under the protocol with this hash, None where it has not been.

    UserError where its file is gone or altered.
    """
    version = versions.get(number)
    brief = recorded(version).get(key)
    if brief is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = Path(versions.client.download_artifacts(version.run_id, brief.artifact, folder))
            fault = None if file_sha256(file) == brief.sha256 else "was altered"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # a store that is away does not mean that it is gone
                raise
            fault = "is gone"
        if fault:
            where = versions.client.get_run(version.run_id).info.artifact_uri
            raise UserError(
                f"{versions.model} version {number}: {brief.artifact} {fault} in {where}; restore it from a backup, or "
                f"delete the version's tag {_SCORES}{key}, and it is scored again if it is needed"
            )
        return Evaluation(load_estimates(file), brief.finite, brief.protocol)


def verdict_of(version: ModelVersion) -> tuple[str, Verdict] | None:
    """What the gate said of a version, None where it has not been asked."""
    word = version.tags.get(VERDICT)
    return None if word is None else (word, Verdict(word != REFUSED, tuple(json.loads(version.tags[REASONS]))))


def decision(version: ModelVersion) -> str:
    """All that was decided about a version, in a line."""
    tags = version.tags
    said = [tags.get(VERDICT, "not judged")]
    if APPROVAL[0] in tags:
        said.append(f"promoted by {tags[APPROVAL[1]]}: {tags[APPROVAL[0]]}")
    if ROLLED_BACK in tags:
        said.append(f"rolled back {tags[ROLLED_BACK]}")
    return "; ".join(said)
