"""Ray Train runs the loop: on this machine, or, where RAY_ADDRESS is set, on that cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train.collective
import torch
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dpgan import cluster
from dpgan.config import RunSettings
from dpgan.data.staging import fetch
from dpgan.environment import quiet_environment
from dpgan.errors import Stopped, UserError
from dpgan.training.build import Job
from dpgan.training.loop import Tracker, train
from dpgan.training.strategy import AgreedError
from dpgan.training.watchdog import Watchdog, out_of_memory, what_fits

WATCH_S = 5.0  # between two looks at Ray's nodes: it needs some seconds itself until it calls one lost

Resources = Mapping[str, float]
"""Amounts by kind: CPU, GPU."""


def share_of_worker(run: RunSettings, nodes: Sequence[Resources]) -> dict[str, float]:
    """What each worker takes of the running Ray."""
    gpu = cluster.wants_gpu(run.device, sum(node.get("GPU", 0) for node in nodes))
    return {"CPU": run.cpus_per_worker, **({"GPU": 1} if gpu else {})}


def missing(run: RunSettings, share: Resources, nodes: Sequence[Resources]) -> str | None:
    """What the `nodes` lack for all workers to run, and what to do; None if nothing."""
    for kind, amount in share.items():
        have = sum(node.get(kind, 0) for node in nodes)
        if have < amount * run.workers:
            return (
                f"params.yaml: run.workers {run.workers} need {amount * run.workers:g} {kind}s, Ray has {have:g}; "
                "ask for fewer workers, or set run.device"
            )
    fit = [min(int(node.get(kind, 0) // amount) for kind, amount in share.items()) for node in nodes]
    able = sum(count > 0 for count in fit)
    if run.placement == "STRICT_SPREAD" and able < run.workers:
        return (
            f"params.yaml: run.placement STRICT_SPREAD puts each of run.workers {run.workers} on a node of its own, "
            f"Ray has {able} that can take one; ask for fewer workers, or take SPREAD"
        )
    if sum(fit) < run.workers:
        return (
            f"params.yaml: Ray's nodes have room for {sum(fit)} of run.workers {run.workers} with run.cpus_per_worker "
            f"{run.cpus_per_worker} on one node; ask for fewer of either"
        )
    return None


def resources(run: RunSettings) -> dict[str, float]:
    """What each worker takes of the running Ray; UserError if Ray has too little, and would wait forever."""
    nodes = _nodes()
    share = share_of_worker(run, nodes)
    if gap := missing(run, share, nodes):
        raise UserError(gap)
    return share


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def start_ray(run: RunSettings) -> None:
    """The cluster of RAY_ADDRESS, or a local one with just the CPUs that are needed."""
    cluster.start_ray(run.workers * run.cpus_per_worker + 1)  # one more: for Ray Train's controller


def launch(job: Job, tracker: Tracker, report: Callable[[int, int, str], None]) -> None:
    """Run `train` on `job.run.workers` workers until it is done; lost workers are restarted from a checkpoint.

    `report(done, total, note)` is called in this process. SIGINT and SIGTERM end it after a checkpoint, or after
    `run.grace_s`, or at once when sent again; then Stopped is raised. UserError if nodes or workers are lost for good.
    """
    run = job.run
    start_ray(run)
    share = resources(run)
    # On this node: what the workers report must not be lost with another one.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board, orders = (Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}) for _ in range(2))
    closed, mistakes, lost = threading.Event(), list[UserError](), list[UserError]()
    printer = threading.Thread(target=_read, args=(board, report, mistakes, closed), daemon=True)
    printer.start()
    threading.Thread(target=_watch, args=(run, share, lost, closed), daemon=True).start()
    trainer = _trainer(job, share, {"job": job, "tracker": tracker, "board": board, "orders": orders})
    try:
        failure = _fit(trainer, orders, run.grace_s, lost)
    finally:
        closed.set()
        printer.join(timeout=5)
    for mistake in reversed(mistakes):
        if failure is not None or isinstance(mistake, AgreedError):  # else a restart has fixed it
            raise mistake
    if failure is not None:
        raise _explained(failure, run)


def _trainer(job: Job, share: Mapping[str, float], config: dict[str, Any]) -> TorchTrainer:
    run, gpu = job.run, "GPU" in share
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(run.start_timeout_s)  # Ray hands it to its controller
    return TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=run.hang_s),
        scaling_config=ScalingConfig(
            num_workers=run.workers, use_gpu=gpu, resources_per_worker=dict(share), placement_strategy=run.placement
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(job.folder),
            failure_config=FailureConfig(
                max_failures=run.max_failures,
                controller_failure_limit=run.max_failures,  # starts in vain: Ray's default is to try for ever
                max_preemption_failures=run.max_failures,
            ),
        ),
    )


def _fit(trainer: TorchTrainer, orders: Queue, grace_s: float, lost: list[UserError]) -> BaseException | None:
    """`trainer.fit()` in a thread: there Ray leaves the signals alone, which it would answer by killing the workers.

    Returns what made it fail, or the first of `lost`, which ends the waiting.
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
        while fitting.is_alive() and not lost and len(taken) < 2 and time.monotonic() < deadline:
            fitting.join(0.2)
            if taken and deadline == float("inf"):
                deadline = time.monotonic() + grace_s
                orders.put("stop")
                print(f"train     stopping after a checkpoint, within {grace_s:g} s; again: at once", flush=True)
    if taken:
        raise Stopped(taken[0])
    return next(iter([*failures, *lost]), None)


def _watch(run: RunSettings, share: Resources, lost: list[UserError], closed: threading.Event) -> None:
    """Print what is missing when Ray has become too small for the workers; `lost` if it stays so.

    Ray itself waits without a word, and starts the workers again when a node has joined.
    """
    since: float | None = None
    while not closed.wait(WATCH_S):
        try:
            gap = missing(run, share, _nodes())
        except ray.exceptions.RayError:  # Ray is ending, and `fit` says why
            return
        if gap is None:
            since = None
        elif since is None:
            since = time.monotonic()
            print(f"train     a node is lost; waiting up to {run.start_timeout_s:g} s for one: {gap}", flush=True)
        elif time.monotonic() - since > run.start_timeout_s:
            lost.append(
                UserError(
                    f"a node was lost, and none came back within run.start_timeout_s {run.start_timeout_s:g}: {gap}. "
                    "The same command resumes from the last checkpoint, also with fewer workers"
                )
            )
            return


def _explained(failure: BaseException, run: RunSettings) -> BaseException:
    """A sentence for what Ray ran out of patience with; any other failure as it is."""
    again = "The same command resumes from the last checkpoint"
    if isinstance(failure, ControllerError):
        return UserError(
            f"Ray could not start run.workers {run.workers} in {run.max_failures + 1} attempts of up to "
            f"{run.start_timeout_s:g} s ({failure.controller_failure}): other work may hold the CPUs or GPUs, `ray "
            f"status` shows it. {again}"
        )
    if isinstance(failure, WorkerGroupError):
        died = {rank: e for rank, e in failure.worker_failures.items() if isinstance(e, ray.exceptions.RayActorError)}
        if died:
            rank, cause = next(iter(died.items()))
            return UserError(
                f"training worker {rank} died, after run.max_failures {run.max_failures} restarts "
                f"({str(cause).splitlines()[0]}): most often for lack of memory, take a smaller train.batch per worker "
                f"or train.accumulate. {again}"
            )
    return failure


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
    """Print and report what the workers put on the board, until it is closed and empty."""
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
    rank = ray.train.get_context().get_world_rank()
    watchdog = Watchdog(job.folder / "stacks" / f"rank-{rank}", 0.8 * job.run.hang_s)
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
            beat=watchdog.beat,
        )
    except AgreedError as error:
        board.put(error)  # and nothing else: all workers have it, and no restart would change it
    except UserError as error:
        board.put(error)
        raise
    except Exception as error:
        if out_of_memory(error):
            board.put(what_fits(job.settings, job.run, job.card.size))
        elif stacks := watchdog.stacks():
            board.put(f"made no progress for {watchdog.seconds:g} s; where it was:\n{stacks}")
        else:
            board.put(_failed(job.folder, rank, error))  # Ray reports it only when no restart is left
        raise
    finally:
        watchdog.close()


def _failed(folder: Path, rank: int, error: Exception) -> str:
    """A line for a worker that failed, most often because another one is gone; its traceback goes to a file."""
    log = folder / "failures.log"
    with suppress(OSError), log.open("a") as file:  # the disk may be full
        file.write(f"worker {rank}\n{''.join(traceback.format_exception(error))}\n")
    said = next(iter(str(error).strip().splitlines()), "")[:160]
    return f"worker {rank} failed ({type(error).__name__}: {said}); its traceback is in {log}"
