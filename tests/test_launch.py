"""What the workers need of Ray's nodes, and how long a launch waits for it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from dpgan.config import RunSettings
from dpgan.errors import UserError
from dpgan.training import launch

BOTH = [{"CPU": 2.0}, {"CPU": 1.0}]


@pytest.mark.parametrize(
    ("settings", "nodes", "words"),
    [
        ({}, BOTH, None),
        ({}, BOTH[1:], "run.workers 2 need 2 CPUs, Ray has 1"),
        ({"placement": "STRICT_SPREAD"}, BOTH, None),
        ({"placement": "STRICT_SPREAD"}, BOTH[:1], "Ray has 1 that can take one"),
        ({"workers": 1, "cpus_per_worker": 3}, BOTH, "have room for 0 of run.workers 1 with run.cpus_per_worker 3"),
        ({"device": "cuda"}, BOTH, "run.workers 2 need 2 GPUs, Ray has 0"),
        ({}, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0}], "run.workers 2 need 2 GPUs, Ray has 1"),
    ],
)
def test_what_the_nodes_lack(settings: dict[str, Any], nodes: list[dict[str, float]], words: str | None) -> None:
    run = RunSettings.model_validate({"workers": 2, **settings})
    gap = launch.missing(run, launch.share_of_worker(run, nodes), nodes)
    assert (gap is None) if words is None else (words in str(gap))


def watch(
    monkeypatch: pytest.MonkeyPatch, run: RunSettings, looks: list[list[dict[str, float]]]
) -> tuple[list[UserError], int]:
    """What is lost after the looks at the nodes, a second each; how many of them it took."""
    clock, count = [0.0], [0]

    class Closed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock[0] += timeout or 0
            count[0] += 1
            return count[0] > len(looks)

    monkeypatch.setattr(launch, "WATCH_S", 1.0)
    monkeypatch.setattr(launch, "_nodes", lambda: looks[count[0] - 1])
    monkeypatch.setattr(launch.time, "monotonic", lambda: clock[0])
    lost: list[UserError] = []
    launch._watch(run, {"CPU": 1}, lost, Closed())
    return lost, count[0]


def test_a_node_that_comes_back_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunSettings(workers=3, start_timeout_s=3)
    lost, _ = watch(monkeypatch, run, [BOTH, BOTH[:1], BOTH[:1], BOTH, BOTH[:1], BOTH[:1], BOTH])
    assert lost == []
    assert capsys.readouterr().out.count("a node is lost; waiting up to 3 s for one: params.yaml: run.workers 3") == 2


def test_a_node_that_stays_away_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunSettings(workers=3, start_timeout_s=3)
    (error,), looks = watch(monkeypatch, run, [BOTH, *[BOTH[:1]] * 20])
    assert looks == 1 + 1 + 4
    assert "none came back within run.start_timeout_s 3: params.yaml: run.workers 3 need 3 CPUs, Ray has 2" in str(
        error
    )


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ControllerError(TimeoutError("x")), "could not start run.workers 2 in 3 attempts of up to 180 s (x)"),
        (WorkerGroupError("x", {1: RayActorError()}), "worker 1 died, after run.max_failures 2 restarts (The actor"),
    ],
)  # fmt: skip
def test_what_ray_gives_up_on_is_a_sentence(failure: BaseException, words: str) -> None:
    error = launch._explained(failure, RunSettings(workers=2))
    assert isinstance(error, UserError)
    assert words in str(error)
    assert "The same command resumes from the last checkpoint" in str(error)


def test_a_mistake_of_ours_stays_as_it_is() -> None:
    failure = WorkerGroupError("x", {0: ValueError("a bug")})
    assert launch._explained(failure, RunSettings()) is failure
