"""Prefect's worker, which waits for its server however long that is away.

    python -m flows.worker start --pool dpgan       # as `prefect worker start`

Prefect's own gives up after some half an hour, and ends the runs that it has started when it goes.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from prefect._internal import observers
from prefect.utilities import services
from prefect.workers import base

_loop = services.critical_service_loop


async def patient_loop(workload: Callable[..., Awaitable[Any]], interval: float, **how: Any) -> None:
    """Prefect's loop around a service of the worker, begun again whenever it gives up on a server that is away."""
    while True:
        try:
            return await _loop(workload, interval, **how)
        except RuntimeError:  # it counts errors of transport and answers of 5xx, nothing else
            await anyio.sleep(interval)


if __name__ == "__main__":
    base.critical_service_loop = observers.critical_service_loop = patient_loop
    sys.argv[1:1] = ["worker"]
    runpy.run_module("prefect", run_name="__main__")
