"""dpgan.cluster: many small jobs in this process and on Ray."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpgan import cluster
from dpgan.cluster import CHUNK, FEW, Share, Workers, each, places, wants_gpu
from dpgan.errors import UserError


def _square(job: int) -> int:
    if job < 0:
        raise UserError(f"job {job}")
    return job * job


def _pid(job: int) -> int:
    time.sleep(0.01)
    return os.getpid()


def _mark(job: Path) -> None:
    time.sleep(0.05)
    job.touch()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_once_with_its_position(workers: int) -> None:
    jobs = list(range(10 * CHUNK + 3))
    assert sorted(each(_square, jobs, workers)) == [(i, i * i) for i in jobs]
    assert list(each(_square, [], workers)) == []


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_jobs_error_reaches_the_caller_as_it_is(workers: int) -> None:
    with pytest.raises(UserError) as error:
        list(each(_square, [1, 2, -3, 4], workers))
    assert str(error.value) == "job -3"


@pytest.mark.usefixtures("ray_session")
def test_many_jobs_go_to_other_processes_and_few_stay() -> None:
    assert {pid for _, pid in each(_pid, range(FEW))} == {os.getpid()}
    many = {pid for _, pid in each(_pid, range(8 * CHUNK))}
    assert os.getpid() not in many
    assert len(many) > 1


@pytest.mark.usefixtures("ray_session")
def test_few_results_wait_in_memory_and_nothing_runs_on_when_the_caller_ends(tmp_path: Path) -> None:
    import ray

    marks = [tmp_path / str(i) for i in range(100 * CHUNK)]
    with closing(each(_mark, marks, workers=2)) as results:
        next(results)
        time.sleep(0.3)
    limit = cluster.WAITING * int(ray.cluster_resources()["CPU"]) * CHUNK
    begun = len(list(tmp_path.iterdir()))
    assert 0 < begun <= limit
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) == begun


@dataclass
class Loaded:
    """A function that marks in which processes it was loaded; in the first of them it kills the process once."""

    folder: Path
    deadly: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        (self.folder / "loads").mkdir(exist_ok=True)

    def __reduce__(self) -> tuple[object, ...]:
        return _load, (self.folder, self.deadly)

    def __call__(self, job: int) -> tuple[int, int]:
        once = self.folder / f"died-{job}"
        if job in self.deadly and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return job, os.getpid()


def _load(folder: Path, deadly: tuple[int, ...]) -> Loaded:
    loaded = Loaded(folder, deadly)
    with (folder / "loads" / str(os.getpid())).open("a") as file:
        file.write("loaded\n")
    return loaded


@pytest.mark.usefixtures("ray_session")
def test_a_worker_loads_a_function_once_and_stays(tmp_path: Path) -> None:
    function = Loaded(tmp_path)
    with closing(Workers()) as pool:
        first = {pid for _, (_, pid) in pool.each(function, range(40), at_once=1)}
        second = {pid for _, (_, pid) in pool.each(function, range(40), at_once=1)}
    assert first == second
    assert os.getpid() not in first
    assert [path.read_text() for path in (tmp_path / "loads").iterdir()] == ["loaded\n"] * len(first)


@pytest.mark.usefixtures("ray_session")
def test_jobs_of_a_killed_worker_are_done_again(tmp_path: Path) -> None:
    with closing(Workers()) as pool:
        results = dict(pool.each(Loaded(tmp_path, deadly=(7, 25)), range(60), at_once=2))
        assert [results[i][0] for i in range(60)] == list(range(60))
        assert (tmp_path / "died-7").exists()
        assert (tmp_path / "died-25").exists()


def _dies(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("ray_session")
def test_jobs_that_kill_every_worker_end_it() -> None:
    with (
        closing(Workers()) as pool,
        pytest.raises(UserError, match=r"3 workers of Ray died at the same jobs .* memory"),
    ):
        list(pool.each(_dies, range(2), at_once=2))


@pytest.mark.parametrize(
    ("nodes", "share", "expected"),
    [
        ([{"CPU": 4, "memory": 9}, {"CPU": 2, "memory": 9}], Share(), 6),
        ([{"CPU": 4, "memory": 9}, {"CPU": 2, "memory": 9}], Share(memory=4), 4),  # two on each
        ([{"CPU": 4, "GPU": 1, "memory": 9}, {"CPU": 64, "memory": 9}], Share(gpus=1), 1),
        ([{"CPU": 4, "memory": 9}], Share(memory=10), 0),
    ],
)
def test_a_node_takes_no_more_than_it_has(nodes: list[dict[str, float]], share: Share, expected: int) -> None:
    assert places(nodes, share) == expected


@pytest.mark.usefixtures("ray_session")
def test_more_than_any_node_has_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no node of Ray has 1 CPU, 1 GPU and 2.0 GiB .*: its nodes have 3 CPU, 0 GPU"):
        Workers(Share(gpus=1, memory=2 * 2**30))


@pytest.mark.parametrize(("setting", "gpus", "wants"), [
    ("auto", 0, False), ("auto", 2, True), ("cpu", 2, False), ("cuda", 0, True), ("cuda", 2, True),
])  # fmt: skip
def test_who_wants_a_gpu(setting: str, gpus: int, wants: bool) -> None:
    assert wants_gpu(setting, gpus) is wants
