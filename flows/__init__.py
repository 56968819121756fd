"""Prefect flows over the stages of dvc.yaml.

Prefect reads its settings while it is imported, so its home and the quiet defaults are set here, before.
"""

import logging
import os
from pathlib import Path

from dpgan.environment import quiet_environment


def _is_told(record: logging.LogRecord) -> bool:
    """False for the traceback that Prefect's engine adds to a run which our flow ended as failed, by a sentence."""
    return record.exc_info is None or type(record.exc_info[1]).__name__ != "FailedRun"


quiet_environment()
os.environ.setdefault("PREFECT_HOME", str(Path.cwd() / ".prefect"))
for _name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_is_told)
