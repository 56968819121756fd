"""Prefect's REST API, as far as the tests of the flow need it."""

from __future__ import annotations

import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

ENDS = {"Completed", "Failed", "Crashed", "Cancelled"}


class PrefectClient:
    """Starts runs of train-dpgan's deployments and watches them."""

    def __init__(self, url: str, login: str | None = None) -> None:
        self.url = url
        self.session = requests.Session()
        # SQLite under a busy server: Prefect answers 503 while the database is locked, and its own client asks again.
        again = Retry(total=8, backoff_factor=0.2, status_forcelist=[503], allowed_methods=None)
        self.session.mount("http://", HTTPAdapter(max_retries=again))
        if login:
            name, _, password = login.partition(":")
            self.session.auth = (name, password)

    def post(self, path: str, **body: Any) -> Any:
        answer = self.session.post(f"{self.url}/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def get(self, path: str) -> Any:
        answer = self.session.get(f"{self.url}/{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def start(self, deployment: str, **parameters: Any) -> str:
        """The id of a new run of `train-dpgan/<deployment>`."""
        found = self.get(f"deployments/name/train-dpgan/{deployment}")
        return str(self.post(f"deployments/{found['id']}/create_flow_run", parameters=parameters)["id"])

    def state(self, run: str) -> tuple[str, str]:
        """(name, message) of a run's state."""
        state = self.get(f"flow_runs/{run}")["state"]
        return state["name"], state["message"] or ""

    def wait(self, run: str, name: str, silence_s: float = 300) -> str:
        """The message of the state `name`, when the run is in it.

        Fails if the run ends in another state, or logs nothing for `silence_s`.
        """
        logged, deadline = self.logs(run), time.monotonic() + silence_s
        while (found := self.state(run))[0] != name:
            assert found[0] not in ENDS, f"{found}\n{self.logs(run)[-6000:]}"
            if time.monotonic() > deadline:
                logs, before = self.logs(run), logged
                assert logs != before, f"{found}, and no word for {silence_s:.0f} s\n{logs[-6000:]}"
                logged, deadline = logs, time.monotonic() + silence_s
            time.sleep(0.5)
        return found[1]

    def decide(self, run: str, **decision: Any) -> None:
        """Resume a paused run."""
        self.post(f"flow_runs/{run}/resume", run_input=decision)

    def logs(self, run: str) -> str:
        lines: list[str] = []
        while page := self.post(
            "logs/filter", logs={"flow_run_id": {"any_": [run]}}, sort="TIMESTAMP_ASC", offset=len(lines)
        ):
            lines += [record["message"] for record in page]
        return "\n".join(lines)

    def tasks(self, run: str) -> dict[str, str]:
        """The state of each task of a run, by name."""
        found = self.post("task_runs/filter", flow_runs={"id": {"any_": [run]}})
        return {task["name"]: task["state"]["name"] for task in found}

    def artifacts(self, run: str) -> dict[str, Any]:
        """What a run shows, by key."""
        found = self.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}}, sort="UPDATED_DESC")
        return {artifact["key"]: artifact["data"] for artifact in found}
