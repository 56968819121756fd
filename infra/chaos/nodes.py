"""A Ray cluster of two nodes on this machine, one of which is lost."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from processes import HOST, free_port

from chaos.faults import Outcome, expect, fault
from chaos.lab import Lab, Project, Running, kill, same_weights, tree
from chaos.training import EQUAL

SPREAD = ("run: {workers: 2,", "run: {workers: 2, placement: STRICT_SPREAD,")
PATIENCE_S = 90  # of a training that lacks a node
BOUND_S = 300  # within which a lost node must end in a sentence


class Nodes:
    """A head and other nodes, each a `ray start` of its own with one CPU for a worker."""

    def __init__(self, project: Project) -> None:
        self.project, self.port = project, free_port()
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.env = {**self.token, "RAY_ADDRESS": f"{HOST}:{self.port}"}
        self.started: list[Running] = []
        folder = project.folder("ray")
        # The head has one CPU more: Ray Train's controller takes it.
        self._start(
            "--head", f"--port={self.port}", "--include-dashboard=false", "--num-cpus=2", f"--temp-dir={folder}"
        )

    def join(self) -> Running:
        return self._start(f"--address={HOST}:{self.port}", "--num-cpus=1")

    def _start(self, *words: str) -> Running:
        command = ("ray", "start", "--block", f"--node-ip-address={HOST}", "--object-store-memory=100000000")
        node = self.project.start(*command, *words, env=self.token)
        self.started.append(node)
        count = f"import ray; ray.init('{HOST}:{self.port}', log_to_driver=False); "
        count += "print('nodes', sum(node['Alive'] for node in ray.nodes()))"
        alive = sum(node.process.poll() is None for node in self.started)

        def joined() -> bool:
            output = self.project.run(sys.executable, "-c", count, code=None, env=self.token)
            return f"nodes {alive}" in output

        node.until(joined, "the node joins")
        return node


@contextmanager
def two_nodes(lab: Lab, name: str) -> Iterator[tuple[Project, Nodes, Running]]:
    """A project whose training takes two nodes, and the second one of them."""
    with lab.project(name) as project:
        project.edit("params.yaml", *SPREAD)
        nodes = Nodes(project)
        try:
            yield project, nodes, nodes.join()
        finally:
            for node in nodes.started:
                kill(tree(node.process.pid))


@fault(
    2,
    "a node is lost, and another one joins",
    "as a killed worker; attempts are bounded and counted",
)
def node_lost(lab: Lab) -> Outcome:
    with two_nodes(lab, "n2") as (project, nodes, second):
        training = project.train(env=nodes.env)
        kill(tree(second.process.pid))
        lost = project.lost
        nodes.join()
        training.wait()
        same_weights(project, lab)
        restarts = project.json("build/train.json")["restarts"]
        expect(restarts, "no restart is recorded")
        return Outcome(f"restarted on the new node ({restarts} restarts on the run); {EQUAL}", lost)


@fault(26, "a node is lost for good", "a sentence within a bounded time: what is missing, what to do")
def node_gone(lab: Lab) -> Outcome:
    with two_nodes(lab, "n26") as (project, nodes, second):
        project.edit("params.yaml", SPREAD[1], f"{SPREAD[1]} start_timeout_s: {PATIENCE_S},")
        training = project.train(env=nodes.env)
        kill(tree(second.process.pid))
        began = time.monotonic()
        output = training.wait(None, BOUND_S)
        seconds = time.monotonic() - began
        expect("Traceback" not in output and training.process.returncode, f"it ended with: {output[-2000:]}")
        expect("STRICT_SPREAD" in output or "CPU" in output, f"what is missing is not said: {output[-2000:]}")
        lost = project.lost
        project.edit("params.yaml", *reversed(SPREAD))
        project.run("dpgan", "train")
        same_weights(project, lab)
        return Outcome(f"a sentence after {seconds:.0f} s; resumed on one node; {EQUAL}", lost)
