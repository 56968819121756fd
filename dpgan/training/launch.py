"""Ray Train runs the loop: on this machine, or, where RAY_ADDRESS is set, on that cluster."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Empty, Queue

from dpgan.config import RunSettings, quiet_environment
from dpgan.errors import UserError
from dpgan.training.build import Job
from dpgan.training.loop import Tracker, train


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
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine with just the CPUs that are needed."""
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        host, _, port = address.rpartition(":")
        try:
            if host and port.isdigit():  # asked first: Ray alone would retry for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(**quiet)
        except OSError as error:
            raise UserError(
                f"RAY_ADDRESS={address}: no Ray cluster lets us join ({error}); start it, bring its token "
                "(~/.ray/auth_token, or RAY_AUTH_MODE=disabled where it asks for none), or unset RAY_ADDRESS to train "
                "on this machine"
            ) from None
    else:
        # "local": our own, also where `ray start` has left one running. One CPU more than the workers take, for
        # Ray Train's controller.
        ray.init("local", num_cpus=run.workers * run.cpus_per_worker + 1, include_dashboard=False, **quiet)


def launch(job: Job, tracker: Tracker, report: Callable[[int, int, str], None]) -> None:
    """Run `train` on `job.run.workers` workers until it is done; lost workers are restarted from a checkpoint.

    `report(done, total, note)` is called in this process.
    """
    run = job.run
    start_ray(run)
    share = resources(run)
    gpu = "GPU" in share
    board = Queue()
    closed = threading.Event()
    printer = threading.Thread(target=_print_reports, args=(board, report, closed), daemon=True)
    printer.start()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "tracker": tracker, "board": board},
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
    on_sigint = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # Ray's own handler of SIGINT ends the process, with code 0
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, on_sigint)
        closed.set()
        printer.join(timeout=5)


def _print_reports(board: Queue, report: Callable[[int, int, str], None], closed: threading.Event) -> None:
    while True:
        try:
            message = board.get(timeout=0.5)
            if isinstance(message, str):
                print(f"train     a worker failed:\n{message}", file=sys.stderr, flush=True)
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
        train(job, get_device(), config["tracker"], lambda *facts: board.put(facts))
    except Exception:
        board.put(traceback.format_exc())  # at once: Ray tells it only when no restart is left
        raise
