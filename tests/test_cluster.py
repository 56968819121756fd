"""dpgan.cluster: many small jobs in this process and on Ray."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from dpgan import cluster
from dpgan.cluster import CHUNK, FEW, each
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
