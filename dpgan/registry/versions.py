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
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from dpgan.errors import TemporaryError, UserError
from dpgan.registry.store import database, not_writable
from dpgan.registry.tracking import is_active, open_store
from dpgan.settings import unknown_name

log = logging.getLogger(__name__)

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
_MOVES = "dpgan.moves"  # tag of the registered model: how many moves were made


class MovedError(TemporaryError):
    """Somebody else moved the champion after a decision was made; nothing was changed, and it can be made again."""


@dataclass(frozen=True)
class Standing:
    """Versions by alias, and the number of moves that led there."""

    aliases: Mapping[str, int]
    moves: int

    @property
    def champion(self) -> int | None:
        return self.aliases.get(CHAMPION)


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
        return dict(self.standing().aliases)

    def standing(self) -> Standing:
        """Aliases and moves as they are now."""
        found = self._registered()
        if found is None:
            return Standing({}, 0)
        aliases = {name: int(version) for name, version in found.aliases.items()}
        return Standing(aliases, int(found.tags.get(_MOVES, 0)))

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
        before: Standing,
        aliases: Mapping[str, int | None],
        tags: Mapping[int, Mapping[str, str | None]],
    ) -> None:
        """Moves aliases and sets the tags that go with it as one step, which the next command ends after a crash.

        before: what the decision was made on. None takes an alias or a tag away. Raises MovedError, and changes
        nothing, if somebody else has moved the champion since.
        """
        if self.standing().champion != before.champion:  # by hand, in MLflow's UI
            raise self._moved()
        step = {"id": uuid.uuid4().hex, "why": why, "before": before.champion, "aliases": aliases, "tags": tags}
        number = before.moves + 1
        if not self._claim(number, json.dumps(step, ensure_ascii=False)):
            raise self._moved()
        self._finish_moves()
        after = self.standing()
        if after.moves == number and any(after.aliases.get(name) != version for name, version in aliases.items()):
            raise self._moved()

    def _finish_moves(self) -> str | None:
        """Ends the moves that were claimed, by this process or by one that died in it or is slower.

        The `why` of the last one, None without one. Each can be done twice, and the next one is always done after it,
        so machines that do this at once end with the same aliases.
        """
        why, journal = None, self._journal()
        number = self.standing().moves + 1
        while journal is not None and (step := self._claimed(journal, number)) is not None:
            why = str(step["why"])
            aliases: dict[str, int | None] = step["aliases"]
            # Neither before nor after the step: somebody has set the alias by hand since, and keeps it.
            if self.standing().champion in (step["before"], aliases.get(CHAMPION, step["before"])):
                for version, tags in step["tags"].items():
                    self.tag(int(version), tags)
                for name, target in aliases.items():
                    if target is None:
                        self.client.delete_registered_model_alias(self.model, name)
                    else:
                        self.client.set_registered_model_alias(self.model, name, str(target))
            self.client.set_registered_model_tag(self.model, _MOVES, str(number))
            number += 1
        return why

    def _claim(self, number: int, step: str) -> bool:
        """Whether `step` is the move with this number. MLflow has no compare-and-swap, but writes a param once."""
        journal = self._journal()
        if journal is None:
            raise UserError(f"{self.model} at {self.uri}: the runs of its versions are deleted; restore one in the UI")
        run_id, prefix = journal
        try:
            self.client.log_param(run_id, f"{prefix}{number}", step)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or self._claimed(journal, number) is None:
                raise
        return self._claimed(journal, number) == json.loads(step)

    def _claimed(self, journal: tuple[str, str], number: int) -> dict[str, Any] | None:
        """The move with this number, None if there is none yet."""
        run_id, prefix = journal
        text = self.client.get_run(run_id).data.params.get(f"{prefix}{number}")
        return None if text is None else dict(json.loads(text))

    def _journal(self) -> tuple[str, str] | None:
        """Run and prefix of the params that hold the moves: the run of the oldest version, which all machines find.
        The prefix names the registered model by its birth: one of the same name starts anew."""
        found = self._registered()
        runs = [version.run_id for version in reversed(self.all())]
        run_id = next((run_id for run_id in runs if is_active(self.client, run_id)), None)
        return None if found is None or run_id is None else (run_id, f"dpgan.move.{found.creation_timestamp}.")

    @contextmanager
    def one_at_a_time(self) -> Iterator[str | None]:
        """A lock over all that moves aliases in this store from this machine, whatever folder it works in.

        What a crash left undone is finished first: its `why`, None without one. The kernel frees the lock when its
        holder dies.
        """
        with self._open_lock() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("%s: waiting for another promotion to end", self.model)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield self._finish_moves()

    def _open_lock(self) -> TextIO:
        path = self._lock_path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a")
        except OSError as error:
            raise not_writable(path, str(error.strerror)) from None

    def _lock_path(self) -> Path:
        file = database(self.uri)
        if file is not None:
            return file.with_name(f"{self.model}.lock")
        name = hashlib.sha256(f"{self.uri} {self.model}".encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"dpgan-{os.getuid()}-{name}.lock"

    def _registered(self) -> RegisteredModel | None:
        file = database(self.uri)
        if file is not None and not file.exists():
            return None  # a client would make the database
        found = self.client.search_registered_models(f"name = '{self.model}'")
        return found[0] if found else None

    def _moved(self) -> MovedError:
        return MovedError(f"{self.model}: another promotion moved the champion meanwhile; run this again")
