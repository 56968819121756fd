"""Registers a generator that was trained elsewhere, without an alias: the gate has not seen it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient

from dpgan.registry.packaging import Package, register
from dpgan.registry.tracking import open_run, open_store


def register_import(root: Path, dataset: str, name: str, content: Package, facts: Mapping[str, str]) -> int:
    """The version of `content` in `dpgan-<dataset>`, made in a run `name` of its own that is tagged with `facts`.

    The same content is registered once. Raises UserError where the tracking server does not answer.
    """
    uri, model = open_store(root), f"dpgan-{dataset}"
    client = MlflowClient(uri)
    for found in client.search_model_versions(f"name = '{model}'"):
        if found.tags.get("digest") == content.digest:
            return int(found.version)
    run_id = open_run(root, dataset, name, params={"generator": content.config["generator"]}, tags=facts)
    version = register(uri, model, run_id, content)
    client.set_terminated(run_id)
    return version
