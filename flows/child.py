"""A command, and the end of everything that it started.

    python -m flows.child GRACE_S COMMAND...

A stage is a tree of processes: dvc, dpgan, Ray's own, which leave their process group and outlive their parents. The
flow that started it may be gone, too: Prefect kills it 30 s after a cancel. So a process of its own stands between
them. It is told to stop by SIGTERM, or by the kernel when the flow dies; it passes that on to the command's process
group, so that the training can write its last checkpoint, and waits `GRACE_S` for the whole tree before it kills.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
AFTER_S = 15.0  # for what is left behind a command that ended by itself
MORE_S = 10.0  # beyond the grace time: a training that has used it all up ends Ray and its MLflow run


def run(command: list[str], grace_s: float) -> int:
    """Run `command` to its end and that of all its descendants; its exit code, 128 + number where a signal ended it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the tree become our children, whatever their session
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
    process = subprocess.Popen(command, start_new_session=True)
    code: int | None = None
    deadline = float("inf")
    passed_on = False
    while True:
        ended = _reap(process.pid)
        code = ended if ended is not None else code
        if told and not passed_on:
            passed_on, deadline = True, time.monotonic() + grace_s + MORE_S
            _signal(process.pid)
        elif code is not None and deadline == float("inf"):
            deadline = time.monotonic() + AFTER_S
        left = psutil.Process().children(recursive=True)
        if not left and code is not None:
            process.returncode = code  # reaped here, not by Popen
            return code if code >= 0 else 128 - code
        if time.monotonic() > deadline:
            for straggler in left:
                _kill(straggler)
        time.sleep(0.1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _reap(pid: int) -> int | None:
    """Take the exit codes of all children that have ended; that of `pid` where it is among them."""
    code = None
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == pid:
                code = os.waitstatus_to_exitcode(found[1])
    return code


def _signal(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        print(f"ended by force: {process.pid} {process.name()}", flush=True)
        process.kill()


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], float(sys.argv[1])))
