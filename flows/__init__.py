"""Prefect flows over the stages of dvc.yaml.

Prefect reads its settings while it is imported, so its home and the quiet defaults are set here, before. Then it is
kept from ending a run whose server has been away.
"""

import logging
import os
from pathlib import Path
from typing import Any

from dpgan.environment import quiet_environment


def _is_told(record: logging.LogRecord) -> bool:
    """False for the traceback that Prefect's engine adds to a run which our flow ended as failed, by a sentence."""
    return record.exc_info is None or type(record.exc_info[1]).__name__ != "FailedRun"


def _outlive_lost_leases() -> None:
    """A run outlives the lease of its concurrency slot.

    Prefect's server keeps leases in memory. After it has been away, or has started again, it does not renew them, and
    Prefect 3.8 then cancels the flow, training and all; no setting changes that. Only the slot is lost: the lock on
    the workspace keeps two runs of a dataset apart all the same.
    """
    from prefect.concurrency import _leases

    handle = _leases._handle_lease_renewal_failure

    def only_warn(error: BaseException, lease: Any, ends_run: bool, quiet: bool, scope: Any) -> None:
        handle(error, lease, False, quiet, scope)

    _leases._handle_lease_renewal_failure = only_warn


quiet_environment()
os.environ.setdefault("PREFECT_HOME", str(Path.cwd() / ".prefect"))
_outlive_lost_leases()
for _name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_is_told)
