"""Promotions that race or crash, a model that is altered, and requests that a served model must survive."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import requests
from processes import HOST, free_port

from chaos.faults import Outcome, expect, fault
from chaos.lab import Lab, Project, answers, kill, tree, until
from chaos.tracking import serve

ALIASES = "select alias, version from registered_model_aliases"
VERSIONS = "select version from model_versions"


@cache
def two_versions(lab: Lab) -> Project:
    """A project with two registered versions."""
    project = lab.copy(lab.finished, "versions")
    project.edit("params.yaml", "seed: 0\njudge", "seed: 1\njudge")
    project.run("dvc", "repro")
    lab.also(project)
    return project


def both_promote(project: Project, env: Mapping[str, str] | None = None, rounds: int = 3) -> None:
    """Two people promote different versions at one moment, some times: each answer must be true."""
    for _ in range(rounds):
        asked = {
            number: project.start(
                "dpgan", "registry", "promote", str(number), "--reason", f"round of {number}",
                env={**(env or {}), "TMPDIR": str(project.folder(f"tmp-{number}"))},
            )
            for number in (1, 2)
        }  # fmt: skip
        said = {number: running.wait(None) for number, running in asked.items()}
        codes = {number: running.process.returncode for number, running in asked.items()}
        for number, output in said.items():
            expect("Traceback" not in output, f"a traceback: {output[-2000:]}")
            expect(codes[number] == 0 or "run this again" in output, f"version {number} ended with: {output[-1000:]}")
        aliases = dict(project.rows(ALIASES))
        won = [number for number, code in codes.items() if code == 0]
        expect(won and aliases["champion"] in won, f"champion {aliases}, and these said they are: {won}")
        pending = project.rows("select key from registered_model_tags where key like '%pending%'")
        expect(not pending, f"a step is left: {pending}")


@fault(19, "two promotions at once on one machine", "one after the other; one champion")
def two_promotions(lab: Lab) -> Outcome:
    with lab.project("race", two_versions(lab)) as project:
        both_promote(project)
        return Outcome("three races: one champion each time, and no step left half-done")


@fault(34, "two promotions at once from two machines", "one champion and two true verdicts")
def two_machines(lab: Lab) -> Outcome:
    with lab.project("race2", two_versions(lab)) as project:
        port = free_port()
        server = serve(project, port)
        both_promote(project, {"MLFLOW_TRACKING_URI": f"http://{HOST}:{port}"})
        kill(tree(server.process.pid))
        return Outcome("three races with no lock in common: every answer was true, and no step left half-done")


@fault(20, "a crash between registering and deciding", "run again, it ends as if nothing had happened: one version")
def promotion_killed(lab: Lab) -> Outcome:
    with lab.project("crash") as project:
        project.run("dpgan", "train")
        project.run("dpgan", "evaluate")
        promotion = project.start("dpgan", "promote")
        promotion.until(lambda: _rows(project, VERSIONS), "the version in the registry")
        kill(tree(promotion.process.pid))
        expect(not (project.root / "build/promotion.json").exists(), "it was done before it could be killed")
        project.run("dpgan", "promote")
        expect(len(project.rows(VERSIONS)) == 1, f"versions {project.rows(VERSIONS)}")
        expect(project.rows(ALIASES), "no alias names it")
        return Outcome("killed behind the registration; the same command finished it: one version, one verdict")


def _rows(project: Project, query: str) -> list[Any]:
    try:
        return project.rows(query)
    except Exception:  # the tables are not there yet
        return []


@fault(
    36,
    "the code or the weights of a registered model are altered",
    "refused by the receipt; nothing of it runs",
)
def altered_model(lab: Lab) -> Outcome:
    with lab.project("altered-model", lab.finished) as project:
        for name, change in (("serving.py", _appended_code), ("generator.safetensors", _flipped)):
            (file,) = (path for path in project.root.glob(f"mlruns/**/{name}") if path.is_file())
            before = file.read_bytes()
            marker = project.root / "ran"
            file.write_bytes(change(before, str(marker)))
            output = project.run("dpgan", "evaluate", "models:/dpgan-toyscapes/1", code=2)
            expect(name in output, f"{name} is not named: {output[-1000:]}")
            expect(not marker.exists(), "the altered code ran")
            file.write_bytes(before)
        return Outcome("both refused, with the file's name; the altered code did not run")


def _appended_code(content: bytes, marker: str) -> bytes:
    return content + f"\nimport os; os.mkdir({marker!r})\n".encode()


def _flipped(content: bytes, _: str) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@fault(
    38,
    "a served model gets unknown ids, a huge map, colours, a mistyped parameter",
    "400 with a sentence, in bounded time",
)
def bad_requests(lab: Lab) -> Outcome:
    import numpy as np

    with lab.project("served", lab.finished) as project:
        port = free_port()
        uri = f"sqlite:///{project.root}/mlruns/mlflow.db"
        server = project.start(
            sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/dpgan-toyscapes/1",
            "--env-manager", "local", "--host", HOST, "--port", str(port), env={"MLFLOW_TRACKING_URI": uri},
        )  # fmt: skip
        url = f"http://{HOST}:{port}"
        server.until(lambda: answers(f"{url}/health"), "the served model")
        good = np.full((32, 64), 7)
        asked: dict[str, Any] = {
            "unknown ids": {"inputs": np.arange(1000, 251000).reshape(500, 500).tolist()},
            "a huge map": {"inputs": np.full((2048, 4096), 7).tolist()},
            "colours": {"inputs": np.zeros((32, 64, 3), int).tolist()},
            "an unknown parameter": {"inputs": good.tolist(), "params": {"sead": 1}},
        }
        slowest = 0.0
        for name, body in asked.items():
            began = time.monotonic()
            answer = requests.post(f"{url}/invocations", json=body, timeout=300)
            slowest = max(slowest, time.monotonic() - began)
            expect(answer.status_code == 400, f"{name}: status {answer.status_code}: {answer.text[:300]}")
            expect(len(answer.text) < 4000 and "Traceback" not in answer.text, f"{name}: {answer.text[:300]}")
        answer = requests.post(f"{url}/invocations", json={"inputs": good.tolist()}, timeout=300)
        expect(answer.status_code == 200, f"it does not paint any more: {answer.text[:300]}")
        kill(tree(server.process.pid))
        return Outcome(f"400 with a sentence each, the slowest after {slowest:.1f} s; it paints on")


@fault(41, "the project folder is copied, then the original moves away", "each works on its own registry")
def copied(lab: Lab) -> Outcome:
    with lab.project("original", lab.finished) as project:
        copy = lab.copy(project, "the-copy")
        before = {path: path.stat().st_mtime_ns for path in (project.root / "mlruns").rglob("*") if path.is_file()}
        copy.run("dpgan", "registry", "promote", "1", "--reason", "in the copy")
        copy.run("dpgan", "evaluate", "models:/dpgan-toyscapes/1")
        after = {path: path.stat().st_mtime_ns for path in (project.root / "mlruns").rglob("*") if path.is_file()}
        expect(before == after, "the copy wrote to the original's registry")
        moved = Project(project.root.rename(project.root.with_name("moved")))
        output = moved.run("dpgan", "evaluate", "models:/dpgan-toyscapes/1")
        expect(not project.root.exists(), f"the old folder is there again: {output[-1000:]}")
        lab.end(copy)
        lab.end(moved)
        return Outcome(
            "promoted and evaluated in the copy and after the move; the original's files stayed as they were"
        )


@fault(42, "the registry's database is locked by another process", "waits for some seconds, then a sentence")
def locked_database(lab: Lab) -> Outcome:
    import sqlite3

    with lab.project("locked", lab.finished) as project:
        with sqlite3.connect(project.root / "mlruns/mlflow.db", isolation_level=None) as database:
            database.execute("begin exclusive")
            began = time.monotonic()
            output = project.run("dpgan", "registry", "promote", "1", "--reason", "try", code=None)
            seconds = time.monotonic() - began
            database.execute("rollback")
        expect("Traceback" not in output and "lock" in output, f"it says: {output[-1500:]}")
        project.run("dpgan", "registry", "promote", "1", "--reason", "try")
        until(lambda: dict(project.rows(ALIASES)).get("champion") == 1, "the champion", 10)
        return Outcome(f"a sentence after {seconds:.0f} s; the same command works when the lock is gone")
