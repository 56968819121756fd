"""Ray: the cluster that RAY_ADDRESS names, or one of our own on this machine, and many small jobs on either.

Training on it is `dpgan.training.launch`.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

import ray

from dpgan.errors import TemporaryError, UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

CHUNK = 16  # jobs a task: enough to be worth its overhead, few enough to lose little when interrupted
FEW = 64  # jobs that are not worth starting Ray for
WAITING = 3  # tasks in flight a CPU: one at work, the next ones at hand; bounds what lies in memory
MAX_RETRIES = 3  # of a task whose worker or node died


def start_ray(cpus: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine with `cpus` CPUs, where none runs yet.

    TemporaryError if the cluster does not let us join; UserError if ours would let in anybody.
    """
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    handler = signal.getsignal(signal.SIGTERM)  # Ray's own aborts, with addresses of machine code
    address = os.environ.get("RAY_ADDRESS")
    if address:
        host, _, port = address.rpartition(":")
        try:
            if host and port.isdigit():  # asked first: Ray alone would retry for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(**quiet, runtime_env={"py_modules": [str(Path(__file__).parent)]})  # the nodes run our revision
            signal.signal(signal.SIGTERM, handler)
        except OSError as error:
            raise TemporaryError(
                f"RAY_ADDRESS={address}: no Ray cluster lets us join ({error}); start it, bring its token "
                "(~/.ray/auth_token, or RAY_AUTH_MODE=disabled where it asks for none), or unset RAY_ADDRESS to work "
                "on this machine"
            ) from None
    else:
        mode = os.environ.get("RAY_AUTH_MODE", "token")
        if mode != "token":
            raise UserError(
                f"RAY_AUTH_MODE={mode}: Ray listens on every interface, and whoever reached it could run "
                "code here; unset RAY_AUTH_MODE, or set it only together with RAY_ADDRESS"
            )
        # Ray's processes inherit the mask: a SIGTERM for the process group must leave them alone until the workers
        # have written a checkpoint. (Ray does the same with SIGINT.)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            # "local": our own, also where `ray start` has left one running.
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
            if (token := Path.home() / ".ray" / "auth_token").exists():
                token.chmod(0o600)  # Ray leaves it to be read by everybody, and whoever has it may run code here
        finally:
            signal.signal(signal.SIGTERM, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def each(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int | None = None,
    at_once: int = CHUNK,
    gpus: int = 0,
) -> Generator[tuple[int, Result], None, None]:
    """(position of the job, `function` of it) for all jobs, as they come, as Ray tasks on all CPUs of all nodes.

    A few jobs, or `workers` 1, stay in this process: starting Ray takes seconds. `workers` is the number of CPUs of
    a Ray that is started for it (default: all of this machine). A task does `at_once` jobs, read from `jobs` when it is
    sent off, on one CPU and `gpus` GPUs. At most `WAITING` tasks a CPU are in flight, so that memory stays bounded
    however many jobs there are. An exception of a job is raised here and ends the rest; a task whose process or node
    dies is run again.
    """
    chunks = [range(i, min(i + at_once, len(jobs))) for i in range(0, len(jobs), at_once)]
    if workers == 1 or (workers is None and len(jobs) <= FEW):
        yield from ((i, function(job)) for i, job in enumerate(jobs))
        return
    start_ray(workers or len(os.sched_getaffinity(0)))
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES)(_chunk)
    shared = ray.put(function)
    window = WAITING * max(1, int(ray.cluster_resources().get("CPU", 1)))
    flying: dict[ray.ObjectRef, range] = {}
    waiting = iter(chunks)
    try:
        while True:
            for chunk in waiting:
                flying[task.remote(shared, [jobs[i] for i in chunk])] = chunk
                if len(flying) >= window:
                    break
            if not flying:
                return
            (done,), _ = ray.wait(list(flying), num_returns=1)
            chunk = flying.pop(done)
            try:
                results = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            del done  # lets Ray free the results
            yield from zip(chunk, results, strict=True)
    finally:
        for ref in flying:
            ray.cancel(ref)
        if flying:  # nothing of it runs on: the caller may sweep what the jobs wrote
            ray.wait(list(flying), num_returns=len(flying))


def _chunk(function: Callable[[Job], Result], jobs: list[Job]) -> list[Result]:
    return [function(job) for job in jobs]
