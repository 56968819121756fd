"""Ray Train runs the loop: on this machine, or, where RAY_ADDRESS is set, on that cluster."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import ray.train.collective
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Empty, Queue

from dpgan import cluster
from dpgan.config import RunSettings
from dpgan.data.staging import fetch
from dpgan.environment import quiet_environment
from dpgan.errors import Stopped, UserError
from dpgan.training.build import Job
from dpgan.training.loop import Tracker, train
from dpgan.training.strategy import AgreedError


def resources(run: RunSettings) -> dict[str, float]:
    """What each worker takes of the running Ray; UserError where Ray has too little, and would wait forever."""
    have = ray.cluster_resources()
    gpu = run.device == "cuda" or (run.device == "auto" and have.get("GPU", 0) > 0)
    share: dict[str, float] = {"CPU": run.cpus_per_worker, **({"GPU": 1} if gpu else {})}
    for kind, amount in share.items():
        if have.get(kind, 0) < amount * run.workers:
            raise UserError(
                f"params.yaml: run.workers {run.workers} need {amount * run.workers:g} {kind}s, Ray has "
                f"{have.get(kind, 0):g}; ask for fewer workers, or set run.device"
            )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    able = sum(all(node.get(kind, 0) >= amount for kind, amount in share.items()) for node in nodes)
    if run.placement == "STRICT_SPREAD" and able < run.workers:
        raise UserError(
            f"params.yaml: run.placement STRICT_SPREAD puts each of run.workers {run.workers} on a node of its own, "
            f"Ray has {able} that can take one; ask for fewer workers, or take SPREAD"
        )
    return share


def start_ray(run: RunSettings) -> None:
    """The cluster of RAY_ADDRESS, or a local one with just the CPUs that are needed."""
    cluster.start_ray(run.workers * run.cpus_per_worker + 1)  # one more: for Ray Train's controller


def launch(job: Job, tracker: Tracker, report: Callable[[int, int, str], None]) -> None:
    """Run `train` on `job.run.workers` workers until it is done; lost workers are restarted from a checkpoint.

    `report(done, total, note)` is called in this process. SIGINT and SIGTERM end it after a checkpoint, or after
    `run.grace_s`, or at once when sent again; then Stopped is raised.
    """
    run = job.run
    start_ray(run)
    share = resources(run)
    gpu = "GPU" in share
    board, orders = Queue(), Queue()
    closed, mistakes = threading.Event(), list[UserError]()
    printer = threading.Thread(target=_read, args=(board, report, mistakes, closed), daemon=True)
    printer.start()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "tracker": tracker, "board": board, "orders": orders},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=600),
        scaling_config=ScalingConfig(
            num_workers=run.workers, use_gpu=gpu, resources_per_worker=share, placement_strategy=run.placement
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(job.folder),
            failure_config=FailureConfig(max_failures=run.max_failures),
        ),
    )
    try:
        failure = _fit(trainer, orders, run.grace_s)
    finally:
        closed.set()
        printer.join(timeout=5)
    for mistake in reversed(mistakes):
        if failure is not None or isinstance(mistake, AgreedError):  # else a restart has fixed it
            raise mistake
    if failure is not None:
        raise failure


def _fit(trainer: TorchTrainer, orders: Queue, grace_s: float) -> BaseException | None:
    """`trainer.fit()` in a thread: there Ray leaves the signals alone, which it would answer by killing the workers.

    Returns what made it fail.
    """
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    fitting = threading.Thread(target=fit, daemon=True)
    with taken_signals() as taken:
        fitting.start()
        deadline = float("inf")
        while fitting.is_alive() and len(taken) < 2 and time.monotonic() < deadline:
            fitting.join(0.2)
            if taken and deadline == float("inf"):
                deadline = time.monotonic() + grace_s
                orders.put("stop")
                print(f"train     stopping after a checkpoint, within {grace_s:g} s; again: at once", flush=True)
    if taken:
        raise Stopped(taken[0])
    return failures[0] if failures else None


@contextmanager
def taken_signals() -> Iterator[list[int]]:
    """The SIGINTs and SIGTERMs that arrive within the block, in a list instead of ending anything."""
    taken: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, _: taken.append(n)) for number in numbers]
    try:
        yield taken
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _read(
    board: Queue, report: Callable[[int, int, str], None], mistakes: list[UserError], closed: threading.Event
) -> None:
    """Tell what the workers put on the board, until it is closed and empty."""
    while True:
        try:
            message = board.get(timeout=0.5)
            if isinstance(message, UserError):
                mistakes.append(message)
            elif isinstance(message, str):
                print(f"train     {message}", file=sys.stderr, flush=True)
            else:
                report(*message)
        except Empty:
            if closed.is_set():
                return
        except ray.exceptions.RayError:
            return


def _worker(config: dict[str, Any]) -> None:
    """Runs in every worker process."""
    quiet_environment()
    job: Job = config["job"]
    torch.set_num_threads(job.run.cpus_per_worker)
    board: Queue = config["board"]
    try:
        if job.published is not None and job.run.data_cache is not None:
            job = replace(job, prepared=fetch(job.published, job.run.data_cache, board.put))
            ray.train.collective.barrier()  # torch's meetings time out, and a node may be long at it
        train(
            job,
            get_device(),
            config["tracker"],
            report=lambda *facts: board.put(facts),
            stop=lambda: config["orders"].qsize() > 0,
            say=board.put,
        )
    except AgreedError as error:
        board.put(error)  # and nothing else: all workers have it, and no restart would change it
    except UserError as error:
        board.put(error)
        raise
    except Exception:
        board.put(f"a worker failed:\n{traceback.format_exc()}")  # at once: Ray tells it only when no restart is left
        raise
