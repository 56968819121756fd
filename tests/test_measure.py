"""What is seen in images: the same whatever the batches and the workers."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from coarse import Coarse
from conftest import ROOT, tiny_card
from torch import Tensor

from dpgan.data.pixels import to_float
from dpgan.data.prepare import open_prepared
from dpgan.evaluation.engine import Engine
from dpgan.evaluation.judges.trained import Trained
from dpgan.evaluation.measure import Generated, Job, Jobs, Measured, Observer, Painted, Source, measure, photos
from dpgan.models.generators import Generator, build_generator

SEEDS = (3, 4)
PIXELS = 32 * 64


@dataclass(frozen=True)
class Marked:
    """A source that leaves the number of its process in a folder."""

    source: Source
    folder: Path

    def __call__(self, job: Job, seed: int) -> Tensor:
        (self.folder / str(os.getpid())).touch()
        return self.source(job, seed)


def generator() -> Generator:
    torch.manual_seed(1)
    model = build_generator(
        "dp", num_classes=tiny_card().num_classes, noise_channels=3, width=2, pyramid_width=4
    ).eval()
    with torch.no_grad():
        model.to_rgb.weight.mul_(1000)  # the initial weights are so small that every photo is grey
    return model


def observer(source: Source) -> Observer:
    torch.manual_seed(0)
    return Observer(source, SEEDS, Coarse(), Trained(tiny_card()).eval(), tiny_card())


def measured(tiny: Path, marks: Path, workers: int, batch: int = 1) -> Measured:
    """The generator's images of 16 training label maps, by so many workers."""
    marks.mkdir()
    jobs = Jobs(open_prepared(tiny, "train").labels, None, np.arange(16), pixels=batch * PIXELS)
    with closing(Engine(workers=workers)) as engine:
        return measure(observer(Marked(Generated(generator()), marks)), jobs, engine)


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    marks = tmp_path_factory.mktemp("alone") / "marks"
    result = measured(tiny, marks, workers=1)
    assert [path.name for path in marks.iterdir()] == [str(os.getpid())]
    return result


def assert_same(ours: Measured, theirs: Measured) -> None:
    """To rounding: a pixel on the edge of two classes may be read the other way."""
    np.testing.assert_allclose(ours.features, theirs.features, rtol=1e-5, atol=1e-5)
    assert np.abs(ours.tables - theirs.tables).max() <= 3
    assert ours.tables.dtype == np.int64


def test_shapes_and_order(alone: Measured) -> None:
    card = tiny_card()
    assert alone.features.shape == (len(SEEDS), 16, Coarse.dimension)
    assert alone.tables.shape == (len(SEEDS), 16, len(card.evaluated), 3)
    assert np.abs(alone.features[0] - alone.features[1]).max() > 0.01  # other noise, other images


@pytest.mark.usefixtures("ray_session")
def test_two_workers_see_what_one_sees(tiny: Path, tmp_path: Path, alone: Measured) -> None:
    assert_same(measured(tiny, tmp_path / "marks", workers=2), alone)
    others = {path.name for path in (tmp_path / "marks").iterdir()}
    assert others
    assert str(os.getpid()) not in others


def test_four_workers_see_what_one_sees(tiny: Path, tmp_path: Path, alone: Measured) -> None:
    """On a Ray of their own: the session's has two CPUs."""
    command = [sys.executable, __file__, str(tiny), str(tmp_path)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path)
    with np.load(tmp_path / "seen.npz") as seen:
        assert_same(Measured(seen["features"], seen["tables"], seen["apart"]), alone)
    assert list((tmp_path / "marks").iterdir())


def test_jobs_change_nothing(tiny: Path, tmp_path: Path, alone: Measured) -> None:
    assert_same(measured(tiny, tmp_path / "marks", workers=1, batch=7), alone)


def test_an_image_depends_on_its_label_map_its_number_and_the_seed_alone(tiny: Path) -> None:
    labels = np.array(open_prepared(tiny, "val").labels)
    nothing, paint = np.empty(0, np.uint8), Generated(generator())
    together = paint(Job(range(8), labels, nothing), 5)
    for i in (0, 6):
        one = paint(Job([i], labels[[i]], nothing), 5)
        torch.testing.assert_close(one, together[[i]], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(paint(Job([i], labels[[i]], nothing), 6), one, atol=1e-2)
        assert not torch.allclose(paint(Job([i + 1], labels[[i]], nothing), 5), one, atol=1e-2)


def test_jobs_are_rows_of_a_split_at_a_size(tiny: Path) -> None:
    split = open_prepared(tiny, "val")
    jobs = Jobs(split.labels, split.images, np.array([1, 4, 6]), factor=2, pixels=8 * PIXELS)
    first, last = jobs[0], jobs[1]
    assert len(jobs) == 2
    assert (first.numbers, last.numbers) == ([1, 4], [6])
    assert (last.labels.shape, last.images.shape) == ((1, 64, 128), (1, 64, 128, 3))
    np.testing.assert_array_equal(last.labels[0], split.labels[6].repeat(2, axis=0).repeat(2, axis=1))
    half = Jobs(split.labels, split.images, np.array([6]), factor=0.5)[0]
    assert half.images.shape == (1, 16, 32, 3)
    blocks = np.array(split.images[6]).reshape(16, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(half.images[0] - blocks).mean() < 6
    whole = Jobs(split.labels, split.images, np.array([6]))[0]
    np.testing.assert_array_equal(whole.images[0], split.images[6])


def test_photos_and_paint_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3)).astype(np.uint8)
    job = Job([0], np.array([[[0, 1], [1, 1]]], dtype=np.uint8), images)
    assert torch.equal(photos(job, 9), to_float(images))
    painted = Painted(np.array([[0.0, 0, 255], [255, 255, 255]]))(job, 9)
    assert painted[0, :, 0, 0].tolist() == [-1, -1, 1]


if __name__ == "__main__":
    prepared, folder = map(Path, sys.argv[1:])
    seen_by_four = measured(prepared, folder / "marks", workers=4)
    np.savez(folder / "seen.npz", features=seen_by_four.features, tables=seen_by_four.tables, apart=seen_by_four.apart)
