"""Scores of a tiny validation split, with an untrained judge and, but for one test, a cheap extractor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coarse import Coarse
from conftest import tiny_card
from PIL import Image

from dpgan.config import EvaluateSettings, load_params
from dpgan.data.prepare import Split, open_prepared
from dpgan.errors import UserError
from dpgan.evaluation import evaluate, portions
from dpgan.evaluation.evaluate import Evaluator, all_finite, protocol
from dpgan.evaluation.features import FeatureExtractor, lite0
from dpgan.evaluation.intervals import compare
from dpgan.evaluation.judges.trained import Trained
from dpgan.evaluation.measure import Jobs
from dpgan.evaluation.reference import References
from dpgan.evaluation.report import grid
from dpgan.models.generators import Generator, build_generator

SETTINGS = {"noise_seeds": 2, "resolutions": [2]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the references, shared by the module's evaluators."""
    return tmp_path_factory.mktemp("references")


def no_progress(unit: str, subject: str) -> None:
    """None."""


def make_evaluator(
    tiny: Path,
    folder: Path,
    val: int = 8,
    extractor: FeatureExtractor | None = None,
    progress: Any = no_progress,
    **settings: Any,
) -> Evaluator:
    torch.manual_seed(0)
    judge = Trained(tiny_card()).eval()
    train, data = open_prepared(tiny, "train"), open_prepared(tiny, "val")
    data = Split(data.images[:val], data.labels[:val], data.ids[:val])
    chosen = EvaluateSettings(**{**SETTINGS, **settings})
    references = References(folder, f"data {val}")
    return Evaluator(tiny_card(), train, data, extractor or Coarse(), judge, chosen, references, progress=progress)


@pytest.fixture(scope="module")
def evaluator(tiny: Path, folder: Path) -> Evaluator:
    return make_evaluator(tiny, folder)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(1)
    model = build_generator(num_classes=tiny_card().num_classes, noise_channels=3, width=2, pyramid_width=4).eval()
    with torch.no_grad():
        model.to_rgb.weight.mul_(1000)  # the initial weights are so small that every photo is grey
    return model


def test_real_photos_beat_mean_colours(tiny: Path, folder: Path) -> None:
    evaluator = make_evaluator(tiny, folder, extractor=lite0())
    floor, ceiling = evaluator.floor(), evaluator.ceiling()
    assert ceiling["fid_lite0"].value < floor["fid_lite0"].value
    assert ceiling["kid_lite0"].value < floor["kid_lite0"].value
    distances, readings = {"fid_lite0", "kid_lite0"}, {"miou_trained", "obj_miou_trained", "accuracy_trained"}
    assert {name for name in floor if "/" not in name} == distances | readings
    assert compare(ceiling["fid_lite0"], floor["fid_lite0"], lower_is_better=True).verdict == "better"


def test_scores_do_not_depend_on_jobs_and_portions(
    tiny: Path, folder: Path, evaluator: Evaluator, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = evaluator.generator(generator)
    size = tiny_card().size
    monkeypatch.setattr(evaluate, "Jobs", partial(Jobs, pixels=3 * size[0] * size[1]))
    monkeypatch.setattr(portions, "AT_ONCE", 2 * portions.extracting(Coarse.side))
    other = make_evaluator(tiny, folder).generator(generator)
    for name, score in scores.items():
        assert other[name].value == pytest.approx(score.value, rel=1e-4), name
        assert other[name].interval == pytest.approx(score.interval, rel=1e-3), name


def test_progress_says_what_is_done_from_the_start(tiny: Path, tmp_path: Path, generator: Generator) -> None:
    said: list[tuple[Any, ...]] = []

    def progress(unit: str, subject: str) -> Any:
        return lambda done, total: said.append((unit, subject, done, total))

    evaluator = make_evaluator(tiny, tmp_path, progress=progress, objects=True)
    assert said == [("images", "the val photos", 0, 8), ("images", "the val photos", 8, 8)]
    evaluator.floor()
    evaluator.ceiling()
    evaluator.generator(generator, "best")
    subjects = list(dict.fromkeys((unit, subject) for unit, subject, *_ in said))
    assert subjects == [
        ("images", "the val photos"), ("images", "the floor"), ("objects", "the photos"), ("objects", "the floor"),
        ("images", "the train photos"), ("images", "the ceiling"), ("images", "best"),
        ("images", "the val photos at 2x"), ("images", "best at 2x"), ("objects", "best"),
    ]  # fmt: skip
    for one in subjects:
        done = [(d, total) for unit, subject, d, total in said if (unit, subject) == one]
        assert done[0][0] == 0
        assert done[-1][0] == done[-1][1] > 0


def test_an_old_setting_is_refused_in_a_sentence(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("dataset: toyscapes\nraw: raw\nevaluate: {batch: 16}\n")
    with pytest.raises(UserError, match=r"params\.yaml: evaluate: batch: no longer a setting, .*; delete it"):
        load_params(params)


def test_several_seeds_give_deviation_and_diversity(
    tiny: Path, folder: Path, evaluator: Evaluator, generator: Generator
) -> None:
    scores = evaluator.generator(generator)
    singles = [make_evaluator(tiny, folder, noise_seed=seed, noise_seeds=1, resolutions=[]) for seed in (0, 1)]
    values = [single.generator(generator)["fid_coarse"].value for single in singles]
    assert scores["fid_coarse"].value == pytest.approx(np.mean(values))
    assert scores["fid_coarse"].deviation == pytest.approx(np.std(values, ddof=1))
    assert scores["diversity_coarse"].value > 0.01
    assert scores["diversity_coarse"].record()["seeds"] == 2


def test_lpips_stands_beside_the_diversity_where_it_is_given(
    tiny: Path, folder: Path, evaluator: Evaluator, generator: Generator
) -> None:
    class Brightness:
        """Stands in for LPIPS, whose weights are not at hand: how far the two images' means are apart."""

        def to(self, device: torch.device) -> None:
            """Nothing to move."""

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {}

        def apart(self, images: torch.Tensor) -> torch.Tensor:
            return (images[0].mean((1, 2, 3)) - images[1].mean((1, 2, 3))).abs().double()

    measuring = make_evaluator(tiny, folder)
    measuring.lpips = Brightness()  # type: ignore[assignment]
    score = measuring.generator(generator)["diversity_lpips"]
    assert 0 < score.interval[0] < score.value < score.interval[1]
    assert "diversity_lpips" not in evaluator.generator(generator)
    with pytest.raises(ValueError, match="lpips compares the images of several noises: set noise_seeds to 2 or more"):
        EvaluateSettings(lpips=Path("weights"))


def test_other_resolutions_compare_images_and_photos_of_that_size(evaluator: Evaluator, generator: Generator) -> None:
    scores = evaluator.generator(generator)
    assert {"fid_coarse_x2", "kid_coarse_x2"} <= set(scores)
    assert scores["fid_coarse_x2"].value != pytest.approx(scores["fid_coarse"].value, rel=0.01)


def test_objects_are_scored_where_they_are_asked_for(tiny: Path, folder: Path, generator: Generator) -> None:
    evaluator = make_evaluator(tiny, folder, objects=True, resolutions=[])
    assert evaluator.objects.source == "pieces"  # make_evaluator leaves the instances out
    counts = evaluator.objects.counts()
    assert counts["small"] >= 2
    scores = evaluator.generator(generator)
    assert scores["fid_coarse_objects_all"].n == counts["all"]
    photos = evaluator.images(np.array(evaluator.val.images))
    assert photos["fid_coarse_objects_small"].value == pytest.approx(0, abs=1e-6)
    assert scores["fid_coarse_objects_small"].value > 0
    assert "fid_coarse_objects_all" in evaluator.floor()
    things = [info.model_copy(update={"thing": False}) for info in tiny_card().classes]
    without = tiny_card().model_copy(update={"classes": things})
    with pytest.raises(UserError, match="toyscapes has no instance maps, and its card marks no class as `thing: true`"):
        Evaluator(without, evaluator.train, evaluator.val, Coarse(), evaluator.judge, evaluator.settings,
                  evaluator.references)  # fmt: skip


def test_finished_images_score_as_those_who_made_them(evaluator: Evaluator) -> None:
    scores = evaluator.images(np.array(evaluator.val.images))
    assert scores["fid_coarse"].value == pytest.approx(0, abs=1e-6)
    assert scores["miou_trained"].value == evaluator.ceiling()["miou_trained"].value


@pytest.mark.parametrize(("shape", "found"), [((7, 32, 64, 3), "7 of 32x64"), ((8, 64, 64, 3), "8 of 64x64")])
def test_images_that_do_not_fit_are_refused(evaluator: Evaluator, shape: tuple[int, ...], found: str) -> None:
    with pytest.raises(UserError, match=rf"folder: {found}, and the validation split has 8 label maps of 32x64; there"):
        evaluator.images(np.zeros(shape, np.uint8), "folder")


def test_one_photo_is_too_few(tiny: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"the validation split has 1 photo; FID and KID .* need 2 at least: add"):
        make_evaluator(tiny, folder, val=1)


def test_label_maps_without_an_evaluated_class(tiny: Path, folder: Path) -> None:
    e = make_evaluator(tiny, folder)
    val = Split(e.val.images, np.full_like(e.val.labels, np.flatnonzero(e.card.void)[0]), e.val.ids)
    with pytest.raises(UserError, match=r"toyscapes/dataset\.yaml: the validation label maps have no pixel of a class"):
        Evaluator(e.card, e.train, val, Coarse(), e.judge, e.settings, e.references)


def test_a_resolution_that_no_generator_paints_at(tiny: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.resolutions: 0\.5 x 32x64 is 16x32, .* multiples of 32"):
        make_evaluator(tiny, folder, resolutions=[2, 0.5])


@pytest.fixture
def tf32() -> Iterator[tuple[Any, Any]]:
    """Allowed; what a GPU's kernels ask."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield backends
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def test_every_network_computes_without_tf32(
    tiny: Path, folder: Path, generator: Generator, tf32: tuple[Any, Any]
) -> None:
    """Whatever the caller allows, and that is allowed again afterwards."""
    evaluator = make_evaluator(tiny, folder, extractor=lite0(), resolutions=[], objects=True)
    seen: dict[str, set[bool]] = {}

    def note(module: torch.nn.Module, *_: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):
            owner = next(name for name, network in networks.items() if module in network.modules())
            seen.setdefault(owner, set()).update(backend.allow_tf32 for backend in tf32)

    networks = {"generator": generator, "judge": evaluator.judge, "extractor": evaluator.extractor.network}
    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        evaluator.generator(generator)
    finally:
        handle.remove()
    assert seen == {name: {False} for name in networks}
    assert all(backend.allow_tf32 for backend in tf32)


def test_a_network_that_diverged_is_named(evaluator: Evaluator) -> None:
    broken = build_generator(num_classes=tiny_card().num_classes, noise_channels=3, width=2, pyramid_width=4).eval()
    with torch.no_grad():
        broken.to_rgb.bias[0] = float("nan")
    with pytest.raises(
        UserError, match=r"best\.safetensors: 8 of 8 images have features that are not finite, number 0"
    ):
        evaluator.generator(broken, "best.safetensors")


def test_photos_are_looked_at_once(
    tiny: Path, folder: Path, evaluator: Evaluator, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second evaluation of the same data reads the features of the first."""
    evaluator.ceiling()
    evaluator.generator(generator)
    sources = []
    look = evaluate.measure
    monkeypatch.setattr(evaluate, "measure", lambda observer, *rest: sources.append(observer) or look(observer, *rest))
    again = make_evaluator(tiny, folder)
    np.testing.assert_array_equal(again.real, evaluator.real)
    again.generator(generator)
    assert [type(observer.source).__name__ for observer in sources] == ["Generated", "Generated"]
    make_evaluator(tiny, folder, val=7)
    assert len(sources) == 3  # other data


def test_subsets_of_kid_are_no_longer_a_setting(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("dataset: toyscapes\nraw: raw\nevaluate: {kid_subsets: 10}\n")
    with pytest.raises(UserError, match="evaluate: kid_subsets: no longer a setting, KID is of all images; delete it"):
        load_params(tmp_path / "params.yaml")


def test_the_protocol_is_as_json_keeps_it() -> None:
    """What a record holds is compared with it."""
    found = protocol(Coarse(), "trained", "judge", "data", EvaluateSettings(objects=True), tiny_card())
    assert json.loads(json.dumps(found)) == found


def test_the_contact_sheet_shows_three_columns(evaluator: Evaluator, generator: Generator, tmp_path: Path) -> None:
    evaluator.contact_sheet(evaluator.painter(generator), tmp_path / "sheet.png", rows=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] > 3 * 256
    assert sheet[100:, :256].std() > 10


def test_grid_places_images_row_by_row() -> None:
    columns = [np.full((2, 3, 4, 3), 10, np.uint8), np.full((2, 3, 4, 3), 20, np.uint8)]
    sheet = grid(columns)
    assert sheet.shape == (3 * 2 + 4, 4 * 2 + 4, 3)
    assert sheet[0, 0, 0] == 10
    assert sheet[-1, -1, 0] == 20


def test_nan_weights_are_not_finite(generator: Generator) -> None:
    assert all_finite(generator)
    broken = build_generator(num_classes=5, noise_channels=2, width=1, pyramid_width=2)
    with torch.no_grad():
        broken.stem.bias[0] = float("nan")
    assert not all_finite(broken)
