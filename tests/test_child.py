"""The end of a stage is the end of all that it started, whoever asks for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from conftest import ROOT

# A stage as the pipeline's are: it leaves an orphan in a session of its own, as Ray does, and says who is who.
STAGE = """
import os, signal, subprocess, sys, time
orphan = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep({orphan_s})"
middle = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]], " \
    "start_new_session=True).pid, flush=True)"
def stop(*_):
    time.sleep({checkpoint_s})
    print("checkpoint", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
subprocess.run([sys.executable, "-c", middle, orphan])
print(os.getpid(), flush=True)
time.sleep({own_s})
sys.exit(3)
"""


def start(
    grace_s: float, *, orphan_s: float = 60, checkpoint_s: float = 0, own_s: float = 60
) -> tuple[subprocess.Popen[str], list[int]]:
    """The process of `flows.child`, and the ids of the orphan and the stage."""
    stage = STAGE.format(orphan_s=orphan_s, checkpoint_s=checkpoint_s, own_s=own_s)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.child", str(grace_s), sys.executable, "-c", stage],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, [int(process.stdout.readline()) for _ in range(2)]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_a_command_that_ends_is_waited_for_with_its_orphans() -> None:
    process, pids = start(5, orphan_s=2, own_s=0)
    assert process.wait(timeout=60) == 3
    assert not alive(pids)


def test_a_stop_waits_for_the_checkpoint_and_kills_what_stays() -> None:
    process, pids = start(0, checkpoint_s=2)  # and MORE_S
    began = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 143
    assert "checkpoint" in output
    assert "ended by force" in output, "the orphan ignores SIGTERM"
    assert time.monotonic() - began >= 2
    assert not alive(pids)


def test_a_stop_is_heard_though_it_was_blocked_before() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process, pids = start(0, orphan_s=0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    process.terminate()
    assert "checkpoint" in process.communicate(timeout=60)[0]
    assert not alive(pids)


def test_it_stops_when_the_flow_is_killed(tmp_path: Path) -> None:
    """Nobody is left to send a signal: the kernel does."""
    said = tmp_path / "said"
    flow = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-m', 'flows.child', '0', sys.executable, "
        f"'-c', sys.argv[1]], start_new_session=True, stdout=open({str(said)!r}, 'w')); time.sleep(60)"
    )
    stage = STAGE.format(orphan_s=1, checkpoint_s=0, own_s=60)
    with subprocess.Popen([sys.executable, "-c", flow, stage], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not (said.exists() and said.read_text().count("\n") == 2) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    pids = [int(line) for line in said.read_text().split()]
    while alive(pids) and time.monotonic() < deadline + 30:
        time.sleep(0.1)
    assert not alive(pids)
    assert "checkpoint" in said.read_text()


def test_waiting_costs_nothing_however_many_processes_there_are(tmp_path: Path) -> None:
    """A walk through /proc, as often as needed to notice an end, would cost a part of a core for weeks."""
    begun = tmp_path / "begun"
    stage = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(60)"
    command = [sys.executable, "-m", "flows.child", "0", sys.executable, "-c", stage]
    with subprocess.Popen(command, cwd=ROOT) as child:
        while not begun.exists():
            time.sleep(0.05)
        time.sleep(0.5)
        waits = psutil.Process(child.pid)
        before, calls = sum(waits.cpu_times()[:2]), waits.num_ctx_switches().voluntary
        time.sleep(2)
        assert sum(waits.cpu_times()[:2]) == before
        assert waits.num_ctx_switches().voluntary - calls <= 1, "it has not woken up"
        child.terminate()
        assert child.wait(30) == 143
