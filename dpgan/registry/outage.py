"""Which errors of the tracking server and of its stores may pass when the command is run again."""

from __future__ import annotations

from collections.abc import Iterator

import requests
import urllib3
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

_BUSY = {408, 429, 502, 503, 504}  # HTTP: too slow, too many requests, a server behind a proxy that is away or busy
_PASSING = (OperationalError, ConnectionError, requests.ConnectionError, requests.Timeout,
            requests.exceptions.RetryError, urllib3.exceptions.HTTPError)  # fmt: skip


def may_pass(error: BaseException) -> bool:
    """Whether an error says that a service is away or busy, or a database locked: by its kind, not by its words."""
    return any(_is_outage(cause) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from; MLflow wraps the errors of its transport without saying so."""
    while error is not None:
        yield error
        error = error.__cause__ or (error.__context__ if isinstance(error, MlflowException) else None)


def _is_outage(error: BaseException) -> bool:
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in _BUSY
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code in _BUSY
    return isinstance(error, _PASSING) or _of_s3(error)


def _of_s3(error: BaseException) -> bool:
    """botocore's errors: a store that cannot be reached, or answers that it is busy."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError  # type: ignore[import-untyped]

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in {*_BUSY, 500}  # S3 answers 500 and 503 when it asks to be tried again
    return isinstance(error, (ConnectionError, HTTPClientError))
