"""The finished runs of a dataset, as the paper's tables see them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from dpgan.evaluation.tables import OURS, Run
from dpgan.registry.tracking import open_store

PREFIX = "eval/best/"
SCORES = "evaluation/scores.json"  # of a run's artifacts


def scored_runs(root: Path, dataset: str, preset: str | None = None) -> list[Run]:
    """Runs of experiment `dpgan-<dataset>` that have scores, the oldest first; of one preset where it is given."""
    client = MlflowClient(open_store(root))
    experiment = client.get_experiment_by_name(f"dpgan-{dataset}")
    if experiment is None:
        return []
    filters = f"params.`train.preset` = '{preset}'" if preset else ""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment.experiment_id], filters, order_by=["start_time ASC"], page_token=token)
        found += [_run(run, client) for run in page if any(name.startswith(PREFIX) for name in run.data.metrics)]
        token = page.token
        if not token:
            return found


def _run(run: MlflowRun, client: MlflowClient) -> Run:
    given = run.data.params
    trained: dict[str, object] = {
        key: given.get(f"train.{key}") for key in OURS if key not in ("concat_s0", "labelmix")
    }
    trained["concat_s0"] = given.get("train.concat_s0") == "True"
    trained["labelmix"] = float(given.get("train.losses.labelmix", 0)) > 0
    scores = {k.removeprefix(PREFIX): value for k, value in run.data.metrics.items() if k.startswith(PREFIX)}
    scores |= _intervals(run.info.run_id, client)
    cost = f"cost/{given.get('train.generator')}/"
    scores |= {f"cost_{k.removeprefix(cost)}": v for k, v in run.data.metrics.items() if k.startswith(cost)}
    ended = run.info.end_time
    seconds = (ended - run.info.start_time) / 1000 if ended else None
    return Run(run.info.run_name, trained, scores, seconds)


def _intervals(run_id: str, client: MlflowClient) -> dict[str, float]:
    """`NAME_low`, `NAME_high`, `NAME_deviation` of a run's best, from what its evaluation left beside the metrics."""
    if SCORES not in [artifact.path for artifact in client.list_artifacts(run_id, str(Path(SCORES).parent))]:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        content = json.loads(Path(client.download_artifacts(run_id, SCORES, folder)).read_text())
    return {
        f"{name}_{key}": record[key]
        for name, record in content["intervals"]["best"].items()
        for key in ("low", "high", "deviation")
        if key in record
    }
