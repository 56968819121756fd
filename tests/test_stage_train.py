"""The stage around a training: one at a time, and nothing of a finished run is lost before DVC knows it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpgan.errors import UserError
from dpgan.files import sole_holder
from dpgan.stages.train import RECORDED, _recorded, put_away, take_back

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from dpgan.files import sole_holder
with sole_holder(Path(sys.argv[1]), "train"):
    subprocess.Popen(["sleep", "30"])  # must not keep the lock
    print("holds", flush=True)
    time.sleep(60)
"""


def test_the_second_of_two_trainings_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "runs" / ".name.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holds\n"
        words = rf"train is at work already, process {first.pid} on {os.uname().nodename} since \d{{4}}-.* UTC: wait"
        with pytest.raises(UserError, match=words), sole_holder(lock, "train"):
            pass
        first.kill()  # the child that it started lives on
        first.wait()
        with sole_holder(lock, "train"):  # the file is there, and its owner is gone
            assert f"process {os.getpid()} " in lock.read_text()
        os.killpg(first.pid, signal.SIGKILL)


def finished_run(folder: Path, recorded: str) -> Path:
    for name in ("checkpoints/images_000000024", "candidates", "ray"):
        (folder / name).mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"images": 24}))
    (folder / RECORDED).write_text(recorded)
    return folder


@pytest.mark.parametrize("keep", [False, True])
def test_a_finished_run_leaves_its_result_and_candidates(tmp_path: Path, keep: bool) -> None:
    folder = finished_run(tmp_path / "runs" / "name", "before")
    finished_run(tmp_path / "runs" / "finished" / "name", "long ago")
    put_away(folder, keep_checkpoints=keep)
    left = {path.name for path in (tmp_path / "runs" / "finished" / "name").iterdir()}
    assert left == {"candidates", "result.json", RECORDED} | ({"checkpoints"} if keep else set())
    assert not folder.exists()


def test_a_run_that_dvc_has_not_recorded_is_taken_back(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    before = _recorded(lock, "code")
    folder = finished_run(tmp_path / "runs" / "name", before)
    put_away(folder, keep_checkpoints=False)
    lock.write_text(yaml.safe_dump({"stages": {"judge": {"outs": [{"md5": "1"}]}}}))
    take_back(folder, _recorded(lock, "code"))
    assert (folder / "result.json").exists(), "another stage's record changes nothing"


@pytest.mark.parametrize(("code", "stage"), [("code", "train"), ("other code", "judge")])
def test_a_recorded_run_or_changed_code_trains_anew(tmp_path: Path, code: str, stage: str) -> None:
    lock = tmp_path / "dvc.lock"
    folder = finished_run(tmp_path / "runs" / "name", _recorded(lock, "code"))
    put_away(folder, keep_checkpoints=False)
    lock.write_text(yaml.safe_dump({"stages": {stage: {"outs": [{"md5": "1"}]}}}))
    take_back(folder, _recorded(lock, code))
    assert not folder.exists()
