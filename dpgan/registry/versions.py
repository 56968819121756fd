"""The versions of a dataset's model in MLflow's registry, and the aliases that say which is which.

`champion`: what is used. `previous`: the champion before it. `challenger`: the candidate that was last refused, or
that waits for a human's approval.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from dpgan.errors import UserError
from dpgan.registry.store import database
from dpgan.registry.tracking import open_store
from dpgan.settings import unknown_name

log = logging.getLogger(__name__)

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
_PENDING = "dpgan.pending_move"


@dataclass(frozen=True)
class Versions:
    """The registered model of one dataset in one store."""

    uri: str
    model: str

    @classmethod
    def of(cls, root: Path, dataset: str) -> Versions:
        """Those of `dpgan-<dataset>`; UserError if the store cannot be used."""
        return cls(open_store(root), f"dpgan-{dataset}")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def all(self) -> list[ModelVersion]:
        """Newest first."""
        if self._registered() is None:
            return []
        return sorted(self.client.search_model_versions(f"name = '{self.model}'"), key=lambda v: -int(v.version))

    def aliases(self) -> dict[str, int]:
        """Versions by alias."""
        found = self._registered()
        return {} if found is None else {name: int(version) for name, version in found.aliases.items()}

    def get(self, number: int) -> ModelVersion:
        return self.client.get_model_version(self.model, str(number))

    def find(self, name: str) -> int:
        """The version that a number or an alias stands for; UserError with the known ones where there is none."""
        aliases, known = self.aliases(), [str(version.version) for version in self.all()]
        number = str(aliases.get(name, name))
        if number not in known:
            raise unknown_name("version", name, [*known, *sorted(aliases)], where=f"{self.model} at {self.uri}")
        return int(number)

    def tag(self, number: int, tags: Mapping[str, str | None]) -> None:
        """Sets tags of a version; None takes one away."""
        for key, value in tags.items():
            if value is None:
                self.client.delete_model_version_tag(self.model, str(number), key)
            else:
                self.client.set_model_version_tag(self.model, str(number), key, value)

    def move(
        self,
        why: str,
        before: Mapping[str, int],
        aliases: Mapping[str, int | None],
        tags: Mapping[int, Mapping[str, str | None]],
    ) -> None:
        """Moves aliases and sets the tags that go with it as one step, which the next command ends after a crash.

        before: the aliases that the decision was made on. None takes an alias or a tag away. Raises UserError where
        another machine has moved the champion since.
        """
        # MLflow has no compare-and-swap: look before, and verify after.
        if self.aliases().get(CHAMPION) != before.get(CHAMPION):
            raise self._moved()
        step = {"why": why, "before": before.get(CHAMPION), "aliases": aliases, "tags": tags}
        self.client.set_registered_model_tag(self.model, _PENDING, json.dumps(step))
        self._finish_move()

    def _finish_move(self) -> str | None:
        """Ends a move that was begun, by this process or by one that died in it; its `why`, None without one."""
        found = self._registered()
        if found is None or _PENDING not in found.tags:
            return None
        step: dict[str, Any] = json.loads(found.tags[_PENDING])
        aliases: dict[str, int | None] = step["aliases"]
        if self.aliases().get(CHAMPION) not in (step["before"], aliases.get(CHAMPION, step["before"])):
            self.client.delete_registered_model_tag(self.model, _PENDING)
            raise self._moved()
        for number, tags in step["tags"].items():
            self.tag(int(number), tags)
        for name, version in aliases.items():
            if version is None:
                self.client.delete_registered_model_alias(self.model, name)
            else:
                self.client.set_registered_model_alias(self.model, name, str(version))
        now = self.aliases()
        self.client.delete_registered_model_tag(self.model, _PENDING)
        if any(now.get(name) != version for name, version in aliases.items()):
            raise self._moved()
        return str(step["why"])

    @contextmanager
    def one_at_a_time(self) -> Iterator[str | None]:
        """A lock over all that moves aliases in this store from this machine, whatever folder it works in.

        What a crash left undone is finished first: its `why`, None without one. The kernel frees the lock when its
        holder dies.
        """
        with self._lock_path().open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("%s: waiting for another promotion to end", self.model)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield self._finish_move()

    def _lock_path(self) -> Path:
        file = database(self.uri)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            return file.with_name(f"{self.model}.lock")
        name = hashlib.sha256(f"{self.uri} {self.model}".encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"dpgan-{os.getuid()}-{name}.lock"

    def _registered(self) -> RegisteredModel | None:
        file = database(self.uri)
        if file is not None and not file.exists():
            return None  # a client would make the database
        found = self.client.search_registered_models(f"name = '{self.model}'")
        return found[0] if found else None

    def _moved(self) -> UserError:
        return UserError(f"{self.model}: another promotion moved the champion meanwhile; run this again")
