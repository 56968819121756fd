"""What Prefect's server does by itself about runs of train-dpgan.

    python infra/automations.py                                    # `make up` and a cluster's first start do it
    WEBHOOK_URL=https://... python infra/automations.py notify     # tell Slack, Teams, ... of runs that end badly

The first one ends runs that have lost their process (a machine switched off, a worker killed): they would be shown as
running for ever, and the next run of their dataset would wait for ever. Both can be seen, changed and switched off in
Prefect's UI, and be made again. The webhook's address is a secret: a block keeps it, and Prefect shows it to nobody.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from prefect.automations import Automation, CallWebhook, EventTrigger, Posture
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState

SILENT_S = 300  # without a heartbeat; they come every half minute, later on a busy machine or after the server was away
ENDS = {"Completed", "Failed", "Cancelled", "Crashed"}
TOLD = "train-dpgan-tells"
PAYLOAD = """{"text": {{ (flow.name ~ "/" ~ flow_run.name ~ ": " ~ flow_run.state.name ~ ". " ~
 (flow_run.state.message or "")) | tojson }}}"""


def end_lost_runs() -> None:
    """Runs without a heartbeat are marked as crashed."""
    beat = "prefect.flow-run.heartbeat"
    _put(
        "lost-runs",
        "Ends runs that have lost their process, so that the next one of their dataset can start",
        EventTrigger(
            after={beat},
            expect={beat, *(f"prefect.flow-run.{state}" for state in ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_S),
        ),
        ChangeFlowRunState(
            state=StateType.CRASHED,
            message=f"no sign of life for {SILENT_S} s: its process or machine is gone; a new run goes on from there",
        ),
    )


def notify(url: str) -> None:
    """Runs that fail, crash or wait for approval are told to a webhook, as {"text": ...}."""
    Webhook.register_type_and_schema()
    block = Webhook(method="POST", url=url, headers={"Content-Type": "application/json"}).save(TOLD, overwrite=True)
    _put(
        TOLD,
        "Tells a webhook of runs that fail, crash or wait for approval",
        EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "Paused")},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": "train-dpgan"},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        CallWebhook(block_document_id=block, payload=PAYLOAD),
    )


def _put(name: str, description: str, trigger: EventTrigger, action: CallWebhook | ChangeFlowRunState) -> None:
    """Make an automation, or change the one of that name; what was switched off stays off.

    One that is as it should be is left alone: an update makes Prefect forget the events that it waits for.
    """
    automation = Automation(name=name, description=description, trigger=trigger, actions=[action])
    try:
        before = Automation.read(name=name)
    except ValueError:  # none of that name
        automation.create()
        return
    automation.id, automation.enabled = before.id, before.enabled
    if automation != before:
        automation.update()


def main() -> None:
    """One of the two, as the module's text says."""
    if sys.argv[1:] == ["notify"]:
        url = os.environ.get("WEBHOOK_URL")
        if not url:
            sys.exit("error: WEBHOOK_URL is not set: the address that is called")
        notify(url)
        print("runs that fail, crash or wait for approval are told to the webhook")
    else:
        end_lost_runs()


if __name__ == "__main__":
    main()
