"""An MLflow server that is away, or that hangs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests
from processes import HOST, free_port

from chaos.faults import Outcome, expect, fault
from chaos.lab import Lab, Project, Running, answers, kill, same_weights, tree, until


def serve(project: Project, port: int) -> Running:
    """An MLflow server on the project's own store, as `make up` starts it."""
    store, artifacts = project.root / "mlruns/mlflow.db", project.root / "mlruns/artifacts"
    store.parent.mkdir(exist_ok=True)
    server = project.start(
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{store}", "--no-serve-artifacts",
        "--default-artifact-root", artifacts.as_uri(), "--host", HOST, "--port", str(port), "--workers", "1",
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # else it starts several more processes
    )  # fmt: skip
    server.until(lambda: answers(f"http://{HOST}:{port}/health"), "MLflow's answer")
    return server


def logged(project: Project) -> dict[str, int]:
    """How many values of each loss and score MLflow has."""
    query = "select key, count(*) from metrics where key like 'loss/%' or key like '%holdout/%' group by key"
    return dict(project.rows(query))


@fault(
    14,
    "MLflow is away at the start, and in the middle of a training",
    "a sentence at the start; later every value arrives once",
)
def away(lab: Lab) -> Outcome:
    expected = logged(lab.finished)
    with lab.project("away") as project:
        port = free_port()
        uri = f"http://{HOST}:{port}"
        output = project.run("dpgan", "train", code=None, env={"MLFLOW_TRACKING_URI": uri})
        expect("Traceback" not in output and uri in output, f"at the start it says: {output[-1000:]}")
        server = serve(project, port)
        training = project.train(env={"MLFLOW_TRACKING_URI": uri})
        kill(tree(server.process.pid))
        training.wait()
        same_weights(project, lab)
        server = serve(project, port)
        project.run("dpgan", "evaluate", env={"MLFLOW_TRACKING_URI": uri})
        found = logged(project)
        expect({key: found.get(key) for key in expected} == expected, f"MLflow has {found} instead of {expected}")
        expect(not list(project.root.glob("runs/**/record.json")), "records are left unsent")
        kill(tree(server.process.pid))
        return Outcome("a sentence at the start; trained on without the server; the next stage sent everything, once")


@fault(
    32,
    "MLflow is away at the end of a training and during evaluate",
    "the next stage or command sends it",
)
def away_at_the_end(lab: Lab) -> Outcome:
    with lab.project("end") as project:
        port = free_port()
        env = {"MLFLOW_TRACKING_URI": f"http://{HOST}:{port}"}
        server = serve(project, port)
        training = project.train(env=env)
        kill(tree(server.process.pid))
        training.wait()
        project.run("dpgan", "evaluate", env=env)
        server = serve(project, port)
        project.run("dpgan", "promote", env=env)
        ((_, status),) = project.runs
        expect(status == "FINISHED", f"the run stays {status}")
        best = project.json("build/scores.json")["best"]["fid_lite0"]
        sent = project.rows("select value from latest_metrics where key = 'eval/best/fid_lite0'")
        expect(sent and abs(sent[0][0] - best) < 1e-6, f"MLflow's score is {sent}, the pipeline's {best}")
        expect(not list(project.root.glob("runs/**/record.json")), "records are left unsent")
        kill(tree(server.process.pid))
        return Outcome("`promote` sent the end of the training and all scores; the run is FINISHED")


@contextmanager
def hanging(port: int) -> Iterator[tuple[int, threading.Event]]:
    """A port in front of an MLflow server, and an event: once set, /health answers and nothing else does."""
    hangs, over = threading.Event(), threading.Event()

    class Proxy(BaseHTTPRequestHandler):
        def forward(self) -> None:
            if hangs.is_set() and self.path != "/health":
                over.wait(600)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
            answer = requests.request(
                self.command, f"http://{HOST}:{port}{self.path}", data=body, headers=headers, timeout=60
            )
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = forward  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the terminal shows the table."""

    with ThreadingHTTPServer((HOST, 0), Proxy) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port, hangs
        finally:
            over.set()
            server.shutdown()


@fault(31, "MLflow answers /health and hangs on everything else", "no step waits; what was not sent is sent later")
def hangs(lab: Lab) -> Outcome:
    expected = logged(lab.finished)
    with lab.project("hang") as project:
        port = free_port()
        server = serve(project, port)
        with hanging(port) as (front, hangs):
            env = {"MLFLOW_TRACKING_URI": f"http://{HOST}:{front}"}
            training = project.train(env=env)
            hangs.set()
            began = time.monotonic()
            training.wait()
            seconds = time.monotonic() - began
            same_weights(project, lab)
            hangs.clear()
            project.run("dpgan", "evaluate", env=env)
            until(lambda: logged(project) == expected, "every value in MLflow", 30)
        kill(tree(server.process.pid))
        return Outcome(f"the rest of the training took {seconds:.0f} s; the next stage sent everything, once")
