"""What several test modules share: the quiet environment, a tiny prepared dataset, one Ray for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpgan.config import RunSettings
from dpgan.environment import quiet_environment

quiet_environment()
# Ray's processes unpickle what the tests define, whichever test starts it first: they must find the test modules.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

# The tests run in two processes: threads of each for every core would wait for one another, at ten times the cost.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes first: one of them at the end would keep one of the two processes waiting."""
    items.sort(key=lambda item: item.path.parent.name != "integration" and item.path.name != "test_training.py")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for every test that needs it: starting one takes seconds."""
    import ray

    from dpgan.training.launch import start_ray

    start_ray(RunSettings(workers=2))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared arrays of 24 + 8 toyscapes at 32x64."""
    from dpgan.data.index import scan
    from dpgan.data.prepare import prepare
    from dpgan.data.toyscapes import write_dataset

    folder = tmp_path_factory.mktemp("tiny")
    card = tiny_card()
    write_dataset(card, folder / "raw", workers=1)
    prepare(scan(card, folder / "raw", workers=1), card, folder / "raw", folder / "prepared", workers=1)
    return folder / "prepared"


def tiny_card():  # type: ignore[no-untyped-def]
    """The card of toyscapes, cut down to 24 + 8 scenes at 32x64."""
    from dpgan.labels import Toyscapes, load_card

    card = load_card("toyscapes", ROOT / "data")
    recipe = Toyscapes(train=24, val=8, size=(32, 64), seed=0)
    return card.model_copy(update={"size": (32, 64), "toyscapes": recipe})
