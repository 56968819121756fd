"""The environment variables that every process of ours runs with."""

from __future__ import annotations

import os


def quiet_environment() -> None:
    """Telemetry of every dependency off, and nothing that needs the network; set before they are imported.

    What the user has set already stays as it is.
    """
    defaults = {
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
