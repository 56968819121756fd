"""Registers a candidate and, where the gate lets it, makes it the champion."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow import MlflowClient

from dpgan.errors import UserError
from dpgan.registry.gate import Evaluation, Verdict, decide
from dpgan.registry.packaging import Package, load_files, register
from dpgan.registry.tracking import is_active, need_server, tracking_uri

CHAMPION, PREVIOUS = "champion", "previous"


@dataclass(frozen=True)
class Promotion:
    """What came of it. `standing`: the candidate was the champion already, nothing was changed."""

    model: str
    version: int
    verdict: Verdict
    champion: int | None
    standing: bool = False


def promote(
    root: Path,
    dataset: str,
    run_id: str,
    content: Package,
    candidate: Evaluation,
    floor: Evaluation,
    ceiling: Evaluation,
    rescore: Callable[[Package], Evaluation],
) -> Promotion:
    """Registers the candidate as a version of `dpgan-<dataset>` and decides whether it becomes champion.

    A champion that has no scores under the candidate's protocol is scored again by `rescore`. Promoted or
    refused, the version carries verdict, reasons and scores. Running it again after a crash at any point
    ends in the same state. Raises UserError where the tracking server does not answer, or where someone on
    another machine moved the champion meanwhile.
    """
    uri, model = tracking_uri(root), f"dpgan-{dataset}"
    need_server(uri)
    client = MlflowClient(uri)
    if not is_active(client, run_id):
        raise UserError(
            f"run {run_id} is not in the tracking store {uri}: set MLFLOW_TRACKING_URI to the store that it was "
            "logged to, or train again: `dvc repro -f train`"
        )
    with _one_at_a_time(root):
        version = register(uri, model, run_id, content)
        champion = alias(client, model, CHAMPION)
        if champion == version:
            return Promotion(model, version, _recorded(client, model, version), champion, standing=True)
        _record_scores(client, model, version, candidate)
        rival = None
        if champion is not None:
            rival = _scores(client, model, champion, candidate.protocol)
            if rival is None:
                rival = rescore(load_files(uri, model, champion))
                _record_scores(client, model, champion, rival)
        verdict = decide(candidate, floor, rival)
        _record_verdict(client, model, version, verdict, _description(candidate, floor, ceiling, verdict))
        if verdict.promoted:
            _crown(client, model, version, champion)
        return Promotion(model, version, verdict, alias(client, model, CHAMPION))


def rollback(root: Path, dataset: str) -> int:
    """Makes the previous champion the champion again, and the other way round; returns its version."""
    uri, model = tracking_uri(root), f"dpgan-{dataset}"
    need_server(uri)
    client = MlflowClient(uri)
    with _one_at_a_time(root):
        previous = alias(client, model, PREVIOUS)
        if previous is None:
            raise UserError(f"{model} at {uri}: no previous champion to go back to")
        _crown(client, model, previous, alias(client, model, CHAMPION))
    return previous


def champion_version(root: Path, dataset: str) -> int | None:
    """The version that is champion of a dataset now, or None. UserError where the server does not answer."""
    uri = tracking_uri(root)
    need_server(uri)
    local = uri.removeprefix("sqlite:///")
    if local != uri and not Path(local).exists():
        return None
    return alias(MlflowClient(uri), f"dpgan-{dataset}", CHAMPION)


def alias(client: MlflowClient, model: str, name: str) -> int | None:
    """The version that an alias of a registered model stands for, or None."""
    found = client.search_registered_models(f"name = '{model}'")
    version = found[0].aliases.get(name) if found else None
    return None if version is None else int(version)


@contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """A lock over the promotions of one machine; the kernel frees it when its holder dies."""
    path = root / "mlruns" / "promote.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _crown(client: MlflowClient, model: str, version: int, champion: int | None) -> None:
    """Moves the aliases: the old champion stays reachable at every moment."""
    moved = UserError(f"{model}: another promotion moved the champion meanwhile; run `dpgan promote` again")
    # MLflow has no compare-and-swap: look before, and verify after.
    if alias(client, model, CHAMPION) != champion:
        raise moved
    if champion is not None:
        client.set_registered_model_alias(model, PREVIOUS, str(champion))
    client.set_registered_model_alias(model, CHAMPION, str(version))
    if alias(client, model, CHAMPION) != version:
        raise moved


def _scores_tag(protocol: str) -> str:
    """A version keeps one evaluation a protocol."""
    return f"evaluation.{hashlib.sha256(protocol.encode()).hexdigest()[:16]}"


def _record_scores(client: MlflowClient, model: str, version: int, evaluation: Evaluation) -> None:
    client.set_model_version_tag(model, str(version), _scores_tag(evaluation.protocol), json.dumps(asdict(evaluation)))


def _scores(client: MlflowClient, model: str, version: int, protocol: str) -> Evaluation | None:
    recorded = client.get_model_version(model, str(version)).tags.get(_scores_tag(protocol))
    return None if recorded is None else Evaluation(**json.loads(recorded))


def _record_verdict(client: MlflowClient, model: str, version: int, verdict: Verdict, description: str) -> None:
    tags = {"verdict": "promoted" if verdict.promoted else "refused", "reasons": json.dumps(verdict.reasons)}
    for key, value in tags.items():
        client.set_model_version_tag(model, str(version), key, value)
    client.update_model_version(model, str(version), description)


def _recorded(client: MlflowClient, model: str, version: int) -> Verdict:
    tags = client.get_model_version(model, str(version)).tags
    return Verdict(tags["verdict"] == "promoted", tuple(json.loads(tags["reasons"])))


def _description(candidate: Evaluation, floor: Evaluation, ceiling: Evaluation, verdict: Verdict) -> str:
    """Markdown for the registry's page: the scores between floor and ceiling, and why."""
    rows = {"floor (class colours)": floor, "this model": candidate, "ceiling (real photos)": ceiling}
    table = ["| | FID | mIoU |", "|---|---|---|"]
    table += [f"| {name} | {row.fid:.5g} | {row.miou:.5g} |" for name, row in rows.items()]
    title = "Promoted" if verdict.promoted else "Refused"
    return "\n".join([f"**{title}**: {'; '.join(verdict.reasons)}.", "", *table])
