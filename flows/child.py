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
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
AFTER_S = 15.0  # for what is left behind a command that ended by itself
MORE_S = 10.0  # beyond the grace time: a training that has used it all up ends Ray and its MLflow run
KILL_S = 0.1  # between two rounds of killing: what is killed may have started others


def run(command: list[str], grace_s: float) -> int:
    """Run `command` to its end and that of all its descendants; its exit code, 128 + number if a signal ended it.

    It sleeps until a child ends or a signal comes: a run of weeks costs nothing here, however busy the machine is.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the tree become our children, whatever their session
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    told: list[int] = []
    signals = _wakes_by_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever was blocked where it was started: it must hear of a stop
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
    process = subprocess.Popen(command, start_new_session=True)
    deadline, passed_on = float("inf"), False
    while True:
        left = _reap(process)
        if not left and process.returncode is not None:
            return process.returncode if process.returncode >= 0 else 128 - process.returncode
        if told and not passed_on:
            passed_on, deadline = True, time.monotonic() + grace_s + MORE_S
            _signal(process.pid)
        elif process.returncode is not None and deadline == float("inf"):
            deadline = time.monotonic() + AFTER_S
        wait = deadline - time.monotonic()
        if wait <= 0:
            for straggler in psutil.Process().children(recursive=True):
                _kill(straggler)
            wait = KILL_S
        select.select([signals], [], [], None if deadline == float("inf") else wait)
        with suppress(BlockingIOError):
            os.read(signals, 4096)


def _wakes_by_signals() -> int:
    """A descriptor that can be read when a signal has come, also one that came just before it is waited for."""
    reads, writes = os.pipe()
    for end in (reads, writes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    return reads


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _reap(process: subprocess.Popen[bytes]) -> bool:
    """Take the exit codes of all children that have ended; whether any child is left.

    Without a child there is no descendant either: whoever loses its parent becomes our child.
    """
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == process.pid:
                process.returncode = os.waitstatus_to_exitcode(found[1])
    except ChildProcessError:
        return False
    return True


def _signal(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        print(f"ended by force: {process.pid} {process.name()}", flush=True)
        process.kill()


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], float(sys.argv[1])))
