"""What the flow makes of a failure: a sentence, or another try."""

from __future__ import annotations

import logging
import re

import pytest
from prefect.exceptions import FailedRun

import flows
from flows.train_dpgan import PassingError, _failed


@pytest.mark.parametrize(
    "message",
    [
        "dvc repro train ended with code 255: ERROR: Unable to acquire lock. Most likely another",
        "git fetch: fatal: unable to access 'https://git.example.org/': Could not resolve host: git.example.org",
        'dvc pull: Could not connect to the endpoint URL: "http://127.0.0.1:9/dvc"',
    ],
)
def test_what_may_pass_is_tried_again(message: str) -> None:
    with pytest.raises(PassingError, match=re.escape(message)):
        _failed(message)


@pytest.mark.parametrize(
    "message", ["data/camvid/raw: no raw pairs of camvid", "validate: 3 errors in the data contract"]
)
def test_what_waiting_cannot_mend_ends_the_run_with_its_sentence(message: str) -> None:
    state = _failed(message)
    assert state.is_failed()
    assert state.message == message


def test_only_the_engine_s_own_traceback_is_dropped() -> None:
    def record(error: Exception | None) -> logging.LogRecord:
        return logging.LogRecord("prefect.engine", logging.ERROR, "", 0, "", (), error and (type(error), error, None))

    assert not flows._is_told(record(FailedRun("said already")))
    assert flows._is_told(record(RuntimeError("a bug")))
    assert flows._is_told(record(None))
