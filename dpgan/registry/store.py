"""Where runs and models are kept, and whether that can be used now: a tracking server, or a SQLite file.

MLflow writes absolute artifact paths into its database. A project that was copied or moved would read and write in its
old folder; `adopt` gives such a database the paths of the folder in which it lies.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow.store.db.utils import _get_latest_schema_revision

from dpgan.errors import TemporaryError, UserError

log = logging.getLogger(__name__)

LOCK_S = 10  # how long a command waits for another process that writes to the database
HEALTH_S, ANSWER_S = 2, 10  # how long a server may take to say that it is up, and to answer from its database
_SQLITE = "sqlite:///"
_ARTIFACTS = "artifacts"  # next to the database
# What MLflow 3.17 keeps artifact paths in.
_PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, else a SQLite file below the project's root folder.

    UserError for a plain folder, which MLflow no longer writes to.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{root.absolute() / 'mlruns' / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise UserError(
            f"MLFLOW_TRACKING_URI={uri}: MLflow no longer keeps runs in a plain folder; set it to a server "
            "(http://HOST:PORT) or a database (sqlite:////FOLDER/mlflow.db), or unset it to use the project's own "
            "mlruns/mlflow.db"
        )
    file = database(uri)
    return uri if file is None else f"{_SQLITE}{file.absolute()}"


def database(uri: str) -> Path | None:
    """The SQLite file of a store; None if it is a server or another database."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifacts_beside(file: Path) -> Path:
    """The folder for the artifacts of a store without a server."""
    return file.parent / _ARTIFACTS


def server_is_up(uri: str) -> bool:
    """Whether the tracking server answers within some seconds, also from its database; true for a store without one."""
    if not uri.startswith("http"):
        return True
    base = uri.rstrip("/")
    experiment = f"{base}/api/2.0/mlflow/experiments/get?experiment_id=0"
    return _answers(f"{base}/health", HEALTH_S) and _answers(experiment, ANSWER_S)


def _answers(url: str, seconds: float) -> bool:
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.HTTPError as error:
        return error.code < 500  # one that asks for a password is up, one without its database is not
    except OSError:
        return False
    return True


def need_server(uri: str) -> None:
    """TemporaryError if the tracking server does not answer."""
    if not server_is_up(uri):
        raise TemporaryError(
            f"MLFLOW_TRACKING_URI={uri}: the tracking server does not answer; start it and run this again, "
            "or unset MLFLOW_TRACKING_URI to use the project's own mlruns/mlflow.db"
        )


def usable_store(root: Path) -> str:
    """The tracking store's URI. UserError if it cannot be used now: what is wrong with it, and what to do."""
    uri = tracking_uri(root)
    need_server(uri)
    file = database(uri)
    if file is not None and file.exists():
        adopt(file)
    elif file is not None:  # MLflow makes it, and its folder
        folder = next(parent for parent in file.parents if parent.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise not_writable(file, f"{folder} is no folder, or read-only")
    return uri


def not_writable(path: Path, why: str) -> UserError:
    """What to say of a part of the store that cannot be written to."""
    return UserError(f"{path} cannot be opened for writing ({why}): make it writable for your user, or set "
                     "MLFLOW_TRACKING_URI to another store")  # fmt: skip


def adopt(file: Path) -> None:
    """Gives a database that was copied or moved the artifact paths of its own folder, in one transaction.

    Nothing happens if its paths lead to this folder already, under whatever name. UserError if the database cannot be
    used, or the artifacts were not copied with it.
    """
    here = artifacts_beside(file.absolute())
    try:
        with closing(sqlite3.connect(file, timeout=LOCK_S, isolation_level=None)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                return  # empty: MLflow fills it
            _check_version(db, file)
            olds = [old for old in _recorded(db, file) if not _same(_path(old).parent / file.name, file)]
            for old in olds:
                _check_artifacts(_path(old), here)
            if olds:
                _rewrite(db, olds, here.as_uri())
                log.warning("%s was copied or moved from %s: its artifact paths now lead here", here.parent,
                            ", ".join(str(_path(old).parent) for old in olds))  # fmt: skip
    except sqlite3.Error as error:
        raise database_error(file, error) from None


def database_error(file: Path, error: sqlite3.Error) -> UserError:
    """What to say of a SQLite file that an operation failed on, by SQLite's result code."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # its upper bits are details
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TemporaryError(f"{file} has been locked by another process for {LOCK_S} s; run this again in a while")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return not_writable(file, str(error))
    return UserError(
        f"{file} is damaged, or no MLflow database ({error}); put a backup in its place (docs/operations.md), or "
        "move it away to start with an empty registry"
    )


def _check_version(db: sqlite3.Connection, file: Path) -> None:
    """UserError if another version of MLflow made the database."""
    (found,) = db.execute("SELECT version_num FROM alembic_version").fetchone() or ("none",)
    if found != _get_latest_schema_revision():
        raise UserError(
            f"{file} was made by another version of MLflow (schema {found}, and {mlflow.__version__} has "
            f"{_get_latest_schema_revision()}); if that was an older one: back the file up, then "
            f"`mlflow db upgrade {_SQLITE}{file.absolute()}`; if a newer one: install its requirements.lock"
        )


def _recorded(db: sqlite3.Connection, file: Path) -> list[str]:
    """The folders, as URIs, that the database's experiments have as its artifact folder."""
    found: dict[str, None] = {}
    for (location,) in db.execute("SELECT artifact_location FROM experiments"):
        base, marker, _ = str(location).rpartition(f"/{_ARTIFACTS}/")
        if not marker or not base.startswith("file:"):
            continue
        folder = _path(base)
        # An experiment may lie on another disk on purpose; the database's own folder has its name, or the original.
        if folder.name == file.absolute().parent.name or (folder / file.name).exists():
            found[f"{base}/{_ARTIFACTS}"] = None
    return list(found)


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _same(old: Path, file: Path) -> bool:
    """Whether two paths are one database: equal, by a symbolic link, or by a folder that is mounted twice."""
    if old == file.absolute():
        return True
    if not old.exists():
        return False
    theirs, ours = old.stat(), file.stat()
    # A second mount has another device, but the same inode; a copy has an inode of its own.
    return (theirs.st_ino, theirs.st_mtime_ns, theirs.st_size) == (ours.st_ino, ours.st_mtime_ns, ours.st_size)


def _check_artifacts(old: Path, here: Path) -> None:
    """UserError if a copied database would go on using the artifacts of the original."""
    if old.is_dir() and (not here.is_dir() or here.samefile(old)):
        raise UserError(
            f"{here.parent} is a copy of {old.parent}, without its artifacts: copy {old} to {here} as well, or set "
            "MLFLOW_TRACKING_URI to the original's database"
        )


def _rewrite(db: sqlite3.Connection, olds: list[str], new: str) -> None:
    """Replaces the beginning of every artifact path."""
    db.execute("BEGIN IMMEDIATE")
    for table, column in _PATHS:
        for old in olds:
            db.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (f"{new}/", len(old) + 2, len(old) + 1, f"{old}/"),
            )
    db.execute("COMMIT")
