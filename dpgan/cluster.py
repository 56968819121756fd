"""Ray: the cluster that RAY_ADDRESS names, or one of our own on this machine, and many small jobs on either.

Training on it is `dpgan.training.launch`; what GPUs are asked for is `wants_gpu` for training and evaluation alike.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray

from dpgan.errors import TemporaryError, UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

CHUNK = 16  # jobs sent at once: enough to be worth the overhead, few enough to lose little when interrupted
FEW = 64  # jobs that are not worth starting Ray for
WAITING = 3  # chunks in flight per worker: one at work, the next ones at hand; bounds what lies in memory
MAX_LOSSES = 3  # of one chunk: how often the worker that has it may die
PATIENCE_S = 600.0  # how long Ray may have no room for any worker


@dataclass(frozen=True)
class Share:
    """What a worker takes of a node."""

    cpus: int = 1
    gpus: int = 0
    memory: int = 0  # bytes; Ray puts no more workers on a node than it has memory for

    def resources(self) -> dict[str, float]:
        """By Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}


def wants_gpu(setting: str, gpus: float) -> bool:
    """Whether `run.device` means a GPU if there are `gpus` of them."""
    return setting == "cuda" or (setting == "auto" and gpus > 0)


def places(nodes: Iterable[Mapping[str, float]], share: Share) -> int:
    """How many workers of a share the nodes take; `nodes`: the resources of each."""
    asked = {kind: amount for kind, amount in share.resources().items() if amount}
    return sum(min(int(node.get(kind, 0) // amount) for kind, amount in asked.items()) for node in nodes)


def cluster_gpus() -> float | None:
    """The GPUs of the cluster that RAY_ADDRESS names; None without one: then nothing is joined or started."""
    if not os.environ.get("RAY_ADDRESS"):
        return None
    start_ray(1)
    return float(ray.cluster_resources().get("GPU", 0))


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
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None = None, at_once: int = CHUNK
) -> Generator[tuple[int, Result], None, None]:
    """(position of the job, `function` of it) for all jobs, as they come, by `Workers` on all CPUs of all nodes.

    A few jobs, or `workers` 1, stay in this process: starting Ray takes seconds. `workers` is the number of CPUs of
    a Ray that is started for it (default: all of this machine).
    """
    if workers == 1 or (workers is None and len(jobs) <= FEW):
        yield from ((i, function(job)) for i, job in enumerate(jobs))
        return
    with closing(Workers(cpus=workers)) as pool:
        yield from pool.each(function, jobs, at_once)


class Workers:
    """Processes of Ray that stay, each with a `Share` of a node: they load a function once for all of its jobs."""

    def __init__(self, share: Share = Share(), cpus: int | None = None, most: int | None = None) -> None:
        """At most `most` of them, default as many as the nodes take. UserError if no node has the share.

        cpus: of a Ray that is started for it, default all of this machine.
        """
        start_ray(cpus or len(os.sched_getaffinity(0)))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        found = places(nodes, share)
        self.share, self.count = share, found if most is None else min(found, most)
        if not self.count:
            raise UserError(f"no node of Ray has {_told(share)}: its nodes have {'; '.join(map(_has, nodes))}")
        self._make = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, memory=share.memory or None)(_Worker)
        self._joining: dict[ray.ObjectRef, Any] = {}  # what each new worker answers when it runs
        self._ready: list[Any] = []
        self._shared: tuple[object, ray.ObjectRef] | None = None  # the last function, and where Ray keeps it

    def each(
        self, function: Callable[[Job], Result], jobs: Sequence[Job], at_once: int = CHUNK
    ) -> Generator[tuple[int, Result], None, None]:
        """(position of the job, `function` of it) for all jobs, as they come.

        A worker is sent `at_once` jobs, read from `jobs` then, and has at most `WAITING` of these chunks: memory stays
        bounded however many jobs there are. The chunks of a worker that dies are done by others. An exception of a job
        is raised here and ends the rest: nothing runs on. UserError if a chunk costs `MAX_LOSSES` workers, or if Ray
        has no room for any worker for `PATIENCE_S`.
        """
        waiting = deque(range(i, min(i + at_once, len(jobs))) for i in range(0, len(jobs), at_once))
        flying: dict[ray.ObjectRef, tuple[Any, range]] = {}
        losses: Counter[range | None] = Counter()  # None: of workers that did not come up
        try:
            while waiting or flying:
                self._hire(len(waiting) + len(flying))
                for worker in self._free(flying, len(waiting)):
                    chunk = waiting.popleft()
                    sent = worker.work.remote([self._share_of(function)], [jobs[i] for i in chunk])
                    flying[sent] = worker, chunk
                done = _first([*flying, *self._joining], None if flying else PATIENCE_S)
                if done is None:
                    raise UserError(
                        f"Ray has had no room for {_told(self.share)} for {PATIENCE_S:g} s; end what fills it, or wait "
                        "until that is done"
                    )
                answer = _answer(done)
                if joined := self._joining.pop(done, None):
                    self._ready += [joined] if answer else []
                    losses[None] += not answer
                elif answer is not None:
                    _, chunk = flying.pop(done)
                    del done  # lets Ray free the results
                    yield from zip(chunk, answer, strict=True)
                else:
                    lost = self._lose(flying[done][0], flying)
                    losses[lost[0]] += 1
                    waiting.extendleft(reversed(lost))
                if any(count >= MAX_LOSSES * (self.count if at is None else 1) for at, count in losses.items()):
                    raise UserError(
                        f"{MAX_LOSSES} workers of Ray died at the same jobs or at their start; Ray's log says why, and "
                        "mostly it is memory: free some, or use fewer CPUs"
                    )
        finally:
            for ref in flying:
                ray.cancel(ref)
            if flying:  # nothing of it runs on: the caller may sweep what the jobs wrote
                ray.wait(list(flying), num_returns=len(flying))

    def close(self) -> None:
        """End the workers, which gives their shares back."""
        for worker in (*self._ready, *self._joining.values()):
            ray.kill(worker)
        self._ready, self._joining, self._shared = [], {}, None

    def _lose(self, worker: Any, flying: dict[ray.ObjectRef, tuple[Any, range]]) -> list[range]:
        """Takes a worker that died out of everything: its chunks, the one that it was at first."""
        self._ready.remove(worker)
        ray.kill(worker)  # it may only have been out of reach
        return [flying.pop(ref)[1] for ref in [ref for ref, (who, _) in flying.items() if who is worker]]

    def _hire(self, chunks: int) -> None:
        """New workers, up to one per chunk, in place of those that were lost."""
        for _ in range(len(self._ready) + len(self._joining), min(self.count, chunks)):
            worker = self._make.remote()
            self._joining[worker.joined.remote()] = worker

    def _free(self, flying: Mapping[ray.ObjectRef, tuple[Any, range]], most: int) -> list[Any]:
        """Workers that can take a chunk, each as often as it can, at most `most`; idle ones first."""
        has = Counter(id(worker) for worker, _ in flying.values())
        turns = [worker for turn in range(WAITING) for worker in self._ready if has[id(worker)] <= turn]
        return turns[:most]

    def _share_of(self, function: object) -> ray.ObjectRef:
        """Where Ray keeps the function."""
        if self._shared is None or self._shared[0] is not function:
            self._shared = function, ray.put(function)
        return self._shared[1]


class _Worker:
    """An actor of Ray. It keeps the last function that it was sent."""

    def __init__(self) -> None:
        self.loaded: tuple[ray.ObjectRef, Callable[[Any], Any]] | None = None

    def joined(self) -> bool:
        return True

    def work(self, where: list[ray.ObjectRef], jobs: list[Any]) -> list[Any]:
        """The function that Ray keeps at `where` of each job; none further once the caller has cancelled."""
        (ref,) = where  # in a list: Ray would load it for every call
        if self.loaded is None or self.loaded[0] != ref:
            self.loaded = None  # before the next one takes memory
            self.loaded = ref, ray.get(ref)
        results = []
        for job in jobs:
            if ray.get_runtime_context().is_canceled():
                break
            results.append(self.loaded[1](job))
        return results


def _first(refs: list[ray.ObjectRef], patience_s: float | None) -> ray.ObjectRef | None:
    """The first that has an answer; None if none has one in time."""
    done, _ = ray.wait(refs, num_returns=1, timeout=patience_s)
    return done[0] if done else None


def _answer(ref: ray.ObjectRef) -> Any:
    """What a worker answered; None if it or its node died. Raises what a job raised."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
        return None


def _told(share: Share) -> str:
    memory = f" and {share.memory / 2**30:.1f} GiB of memory" if share.memory else ""
    gpus = f", {share.gpus} GPU" if share.gpus else ""
    return f"{share.cpus} CPU{gpus}{memory} for a worker"


def _has(node: Mapping[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU, {node.get('memory', 0) / 2**30:.1f} GiB"
