"""What a new cluster's services need once, safe to run again: buckets, the pipeline's account, the deployments.

Runs where a Prefect client of the cluster would, in the root folder of the project, with the environment of
infra/compose.yaml's service `first-start`. The account of MLflow's first administrator makes the pipeline's own.
"""

from __future__ import annotations

import os

import boto3
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
from services import deploy

BUCKETS = ("mlflow", "dvc")


def make_buckets() -> None:
    """The buckets of MLflow's artifacts and of DVC's remote."""
    client = boto3.client("s3")
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in there:
            client.create_bucket(Bucket=name)


def make_account() -> None:
    """The account that the pipeline logs in with; one that is there keeps its password."""
    client = get_app_client("basic-auth", os.environ["MLFLOW_TRACKING_URI"])
    name = os.environ["DPGAN_ACCOUNT"]
    try:
        client.get_user(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_user(name, os.environ["DPGAN_ACCOUNT_PASSWORD"])


if __name__ == "__main__":
    make_buckets()
    make_account()
    deploy(os.environ)
