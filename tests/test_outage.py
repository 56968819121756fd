"""Errors of MLflow and its stores: the kind says whether they may pass, the words do not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from dpgan.registry.outage import may_pass


def raised(uri: str) -> Exception:
    with pytest.raises(MlflowException) as error:
        MlflowClient(uri).search_experiments()
    return error.value


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert may_pass(raised("http://127.0.0.1:9"))


def test_a_database_that_is_locked(tmp_path: Path) -> None:
    """MLflow's store is SQLAlchemy's; it raises an MlflowException from this one."""
    engine = create_engine(f"sqlite:///{tmp_path / 'mlflow.db'}", connect_args={"timeout": 0.1})
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("begin exclusive")
        with pytest.raises(OperationalError) as error, engine.begin() as connection:
            connection.execute(text("create table runs (id integer)"))
        other.rollback()
    assert may_pass(error.value)
    engine.dispose()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "m"}), True),
        (RestException({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "m"}), True),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Connection refused"}), False),
        (MlflowException("failed with error code 503"), False),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), True),
        (ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject"), True),
        (ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject"), False),
        (RuntimeError("database is locked"), False),
        (OSError("No space left on device"), False),
    ],
)
def test_the_kind_decides(error: Exception, passes: bool) -> None:
    assert may_pass(error) == passes


def handled() -> None:
    try:
        raise ConnectionRefusedError
    except ConnectionRefusedError:
        raise KeyError  # noqa: B904


def test_what_a_bug_in_the_handling_raises_is_a_bug() -> None:
    with pytest.raises(KeyError) as error:
        handled()
    assert not may_pass(error.value)
