"""The environment variables that every process of ours runs with."""

from __future__ import annotations

import os
from pathlib import Path

from dpgan.errors import UserError


def quiet_environment() -> None:
    """Telemetry of every dependency off, and nothing that needs the network; set before they are imported.

    What the user has set already stays as it is. DVC's folder for hashes and links is one of this user alone.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    defaults = {
        "DVC_SITE_CACHE_DIR": str(Path(caches).expanduser() / "dpgan" / "dvc"),
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    }
    if os.environ.get("RAY_ADDRESS"):
        defaults["RAY_AUTH_MODE"] = "token"  # what `ray start` asks of those who join; a local Ray makes its own
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    _keep_private(Path(os.environ["DVC_SITE_CACHE_DIR"]))


def _keep_private(folder: Path) -> None:
    """Make a folder that nobody else can write to, or take that right away. UserError if it is another user's.

    DVC unpickles what it finds there, so whoever writes there runs code here (CVE-2025-69872, in diskcache, without a
    fix). Its default is /var/tmp/dvc, which every user of the machine can write to.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return  # then DVC cannot use it either, and says so
    facts = folder.stat()
    if facts.st_uid != os.geteuid():
        raise UserError(f"DVC_SITE_CACHE_DIR: {folder} is another user's, and DVC runs what it finds there; name a "
                        "folder of your own")  # fmt: skip
    if facts.st_mode & 0o077:
        folder.chmod(0o700)
