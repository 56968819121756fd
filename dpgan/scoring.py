"""`dpgan evaluate MODEL` and `dpgan evaluate --images FOLDER`: scores of anything, outside the pipeline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dpgan.config import BUILD, load_params
from dpgan.data.versions import dvc, dvc_aloud
from dpgan.errors import UserError
from dpgan.files import new_folder, write_json
from dpgan.labels import Card, known_datasets, load_card
from dpgan.progress import Progress
from dpgan.settings import unknown_name
from dpgan.stages.build import JUDGE, PREPARED, read_json
from dpgan.stages.evaluate import make_evaluator, plain
from dpgan.stages.page import Subject, noises, protocol_facts, write_evaluation_page

if TYPE_CHECKING:
    import numpy as np

    from dpgan.data.prepare import Split
    from dpgan.evaluation.evaluate import Evaluator, Scores
    from dpgan.evaluation.intervals import Comparison
    from dpgan.evaluation.page import Table
    from dpgan.registry.lookup import Found

SETS = ["floor", "against", "model", "ceiling"]  # in the order of the page


def score(
    model: str | None, images: Path | None, dataset: str | None, raw: Path | None, against: str | None, out: Path | None
) -> None:
    """Score a model, or a folder of images that anybody made, on a dataset's validation split."""
    from dpgan.data.prepare import open_prepared
    from dpgan.evaluation.folder import read_images
    from dpgan.evaluation.intervals import compare_scores, save_estimates
    from dpgan.evaluation.readings import of_real
    from dpgan.registry.lookup import find_generator

    if (model is None) == (images is None):
        raise UserError("dpgan evaluate: name a model or --images FOLDER, and not both")
    card = _card(dataset)
    prepared = cache(partial(_prepared, card, raw))

    def split(name: Literal["train", "val"]) -> Split:
        return open_prepared(prepared() / PREPARED.name, name)

    # What is wrong with a model comes up before data is prepared for it.
    found = find_generator(model, card, Path.cwd(), partial(split, "train")) if model else None
    rival = find_generator(against, card, Path.cwd(), partial(split, "train")) if against else None
    val = split("val")
    pixels = read_images(images, val.ids, card.size, Progress("read")) if images else None
    evaluator, protocol = make_evaluator(card, prepared())
    sets: dict[str, Scores] = {"floor": evaluator.floor(), "ceiling": evaluator.ceiling()}
    if rival:
        _, sets["against"] = _of_generator(rival, str(against), evaluator, protocol)
    if found:
        subject, sets["model"] = _of_generator(found, str(model), evaluator, protocol)
    elif pixels is not None:
        subject, sets["model"] = _of_images(pixels, str(images), evaluator, protocol)

    both = compare_scores(sets["model"], sets["against"]) if rival else {}
    compared = {key: one for key, one in both.items() if not key.startswith("diversity")}
    values = {name: plain(scores) for name, scores in sets.items()}
    for name in sets.keys() - {"ceiling"}:
        values[name] |= of_real(values[name], values["ceiling"])
    out = out or BUILD / "scored" / re.sub(r"[^\w.]+", "-", f"{card.name}-{images or model}").strip("-")
    with new_folder(out) as folder:
        evaluator.contact_sheet(subject.paint, folder / "contact_sheet.png")
        ordered = {name: sets[name] for name in sorted(sets, key=SETS.index)}
        tables = [_comparison(compared, str(against))] if compared else []
        write_evaluation_page(folder / "report.html", evaluator, replace(subject, tables=tables), ordered)
        save_estimates(sets["model"], folder / "estimates.safetensors")
        write_json(
            folder / "scores.json",
            {
                "n": len(val.ids),
                "of": subject.identity,
                "protocol": protocol,
                **values,
                "intervals": {name: {key: one.record() for key, one in s.items()} for name, s in sets.items()},
                "compared": {key: vars(one) for key, one in compared.items()},
            },
        )
    _print(sets, values, compared)
    print(f"\n  report          {out / 'report.html'}\n  numbers         {out / 'scores.json'}")


def _of_generator(found: Found, name: str, evaluator: Evaluator, protocol: Mapping[str, Any]) -> tuple[Subject, Scores]:
    generator = found.generator
    scores = evaluator.generator(generator, name)
    facts = {**found.facts, **protocol_facts(protocol, evaluator.engine)}
    summary = f"noise seeds {', '.join(map(str, evaluator.seeds))}; {name}."
    return Subject("model", summary, evaluator.painter(generator), noises(generator), facts), scores


def _of_images(
    pixels: np.ndarray, name: str, evaluator: Evaluator, protocol: Mapping[str, Any]
) -> tuple[Subject, Scores]:
    scores = evaluator.images(pixels, name)
    facts = {"images": name, **protocol_facts(protocol, evaluator.engine)}
    return Subject("model", f"the images in {name}.", lambda chosen, _: pixels[chosen], 1, facts), scores


def _comparison(compared: Mapping[str, Comparison], rival: str) -> Table:
    from dpgan.evaluation.intervals import CERTAIN
    from dpgan.evaluation.page import Table, number

    rows = [
        [key, number(c.difference), f"[{number(c.low)}, {number(c.high)}]", c.verdict]
        for key, c in compared.items()
        if "/" not in key
    ]
    note = f"Paired: on the same label maps. A verdict is given where the {CERTAIN:.0%} interval leaves out 0."
    return Table(f"Against {rival}", ["", "difference", f"{CERTAIN:.0%} interval", "the model is"], rows, note)


def _card(dataset: str | None) -> Card:
    if dataset and dataset not in known_datasets():
        raise unknown_name("dataset", dataset, known_datasets(), where="--dataset")
    return load_card(dataset or load_params().dataset)


def _prepared(card: Card, raw: Path | None) -> Path:
    """A folder with a dataset's prepared data and its judge.

    That is build/ for the dataset of params.yaml. Those of another one are made by the same stages as a DVC experiment
    that leaves params.yaml and build/ as they are; what is cached is not made again.
    """
    name = card.name
    if name == load_params().dataset and raw is None:
        prepared = read_json(PREPARED / "meta.json", "judge")["dataset"]
        if prepared != name:
            raise UserError(f"{PREPARED} is of {prepared}, params.yaml names {name}; run `dvc repro judge` first")
        return BUILD
    raw = raw or Path("data") / name / "raw"
    if card.toyscapes is None and not raw.is_dir():
        raise UserError(f"{raw}: no such folder; data/{name}/README.md says what to get; --raw FOLDER says where it is")
    root, build = Path.cwd(), BUILD / "scored" / ".data" / name
    experiment = f"evaluate-{name}"
    print(f"evaluate  preparing {name} and its judge, as DVC experiment {experiment}", flush=True)
    with suppress(UserError):
        dvc(root, "exp", "remove", experiment)  # of an evaluation that was cut off
    dvc_aloud(root, "exp", "run", "--temp", "--name", experiment, "-S", f"dataset={name}", "-S", f"raw={raw}",
              "-S", "train=null", "judge")  # fmt: skip
    with new_folder(build) as folder:
        for made in (PREPARED, JUDGE):
            dvc(root, "get", ".", str(made), "--rev", experiment, "--out", str((folder / made.name).absolute()))
    dvc(root, "exp", "remove", experiment)
    return build


def _print(
    sets: Mapping[str, Scores], values: Mapping[str, Mapping[str, float]], compared: Mapping[str, Comparison]
) -> None:
    """A line a score: floor, the model with its interval, ceiling, its share of it, and the comparison."""
    print(f"\n  {'':<28}{'floor':>9}   {'model, 95% interval':<26}{'ceiling':>9}{'of real':>9}")
    for key, one in sets["model"].items():
        if "/" in key:
            continue
        low, high = one.interval
        floor, ceiling = (f"{sets[name][key].value:.1f}" if key in sets[name] else "" for name in ("floor", "ceiling"))
        share = f"{values['model'][f'{key}_of_real']:.0f}%" if f"{key}_of_real" in values["model"] else ""
        ours = f"{one.value:.1f} [{low:.1f}, {high:.1f}]"
        text = f"  {key:<28}{floor:>9}   {ours:<26}{ceiling:>9}{share:>9}"
        if key in compared:
            c = compared[key]
            text += f"   {c.verdict}: {c.difference:+.1f} [{c.low:+.1f}, {c.high:+.1f}]"
        print(text.rstrip())
