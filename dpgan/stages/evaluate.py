"""Scores of what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpgan import identities
from dpgan.config import BUILD, TrainSettings, need
from dpgan.errors import UserError
from dpgan.files import new_folder, write_json
from dpgan.labels import Card
from dpgan.progress import Progress, Stage
from dpgan.stages.build import (
    EVALUATION,
    JUDGE,
    PREPARED,
    REFERENCES,
    SCORES,
    TRAINED,
    read_json,
    setup,
)
from dpgan.stages.page import (
    Subject,
    costs_table,
    measured_costs,
    noises,
    protocol_facts,
    trained_facts,
    write_evaluation_page,
)
from dpgan.stages.summary import markdown, print_scores

if TYPE_CHECKING:
    from dpgan.evaluation.evaluate import Evaluator, Scores
    from dpgan.models.generators import Generator


CURVES = ("loss/G_total", "loss/D_total", "holdout/kid_lite0", "throughput/images_per_s")


def evaluate() -> None:
    """Score the candidates on the validation split, next to floor and ceiling; paint the contact sheet."""
    from dpgan.evaluation.evaluate import all_finite
    from dpgan.evaluation.intervals import save_estimates
    from dpgan.evaluation.page import Curve
    from dpgan.evaluation.readings import of_real
    from dpgan.registry.spool import Tracker
    from dpgan.registry.store import server_is_up, tracking_uri
    from dpgan.registry.tracking import history

    _, card = setup()
    manifest = read_json(TRAINED / "manifest.json", "train")
    evaluator, protocol = make_evaluator()
    sets: dict[str, Scores] = {}
    generators = {name: _generator(card, manifest, name) for name in ("last", "best")}
    same = manifest["best"]["images"] == manifest["images"]  # the last one is the best one
    for name in ("best",) if same else ("last", "best"):
        weights = str(TRAINED / f"{name}.safetensors")
        sets[name] = evaluator.generator(generators[name], weights, further=name == "best")
    if same:
        sets["last"] = sets["best"]
    sets |= {"floor": evaluator.floor(), "ceiling": evaluator.ceiling()}

    size: dict[str, Any] = {"n": len(evaluator.val.ids), "seeds": list(evaluator.seeds)}
    if evaluator.settings.objects:
        size["objects"] = evaluator.objects.counts()
    values = {name: plain(scores) for name, scores in sets.items()}
    for name in values.keys() - {"ceiling"}:
        values[name] |= of_real(values[name], values["ceiling"])
    intervals = {name: {key: score.record() for key, score in scores.items()} for name, scores in sets.items()}
    found = history(Path.cwd(), manifest["run_id"], CURVES) if server_is_up(tracking_uri(Path.cwd())) else {}
    costs = measured_costs(generators["best"], trained_settings(manifest), card, evaluator.engine)
    paint = evaluator.painter(generators["best"])
    subject = Subject(
        name="best",
        summary=f"noise seeds {', '.join(map(str, evaluator.seeds))}; the run is {manifest['run_id']}.",
        paint=paint,
        noises=noises(generators["best"]),
        identity={**trained_facts(manifest), **protocol_facts(protocol, evaluator.engine)},
        curves=[Curve(name, points, manifest["best"]["images"]) for name, points in found.items()],
        tables=[costs_table(costs, card, evaluator.engine)],
    )
    with new_folder(EVALUATION) as folder:
        evaluator.contact_sheet(paint, folder / "contact_sheet.png")
        ordered = {name: sets[name] for name in ("floor", "last", "best", "ceiling")}
        write_evaluation_page(folder / "report.html", evaluator, subject, ordered)
        save_estimates(sets["best"], folder / "estimates.safetensors")  # what paired comparisons read
        save_estimates(sets["floor"], folder / "floor.safetensors")
        write_json(folder / "scores.json", {**size, "protocol": protocol, **values, "intervals": intervals})
    brief = {name: {k: v for k, v in scores.items() if not k.startswith("iou_")} for name, scores in values.items()}
    finite = {f"finite_{name}": all_finite(generator) for name, generator in generators.items()}
    write_json(SCORES, {**size, **finite, **brief})
    tracker = Tracker.of(Path.cwd(), manifest["run_id"])
    tracker.metrics({f"eval/{name}/{k}": v for name, s in brief.items() for k, v in s.items()}, manifest["images"])
    for kind, cost in costs.items():  # supplement, table 5; no scores: a machine's clock is in them
        facts = {"m_parameters": cost.parameters / 1e6, "g_flops": cost.flops / 1e9, "ms": cost.latency_ms,
                 "of_dp": cost.relative, "mb": cost.peak_memory / 1e6}  # fmt: skip
        tracker.metrics({f"cost/{kind}/{name}": value for name, value in facts.items()}, manifest["images"])
    tracker.tags({"mlflow.note.content": markdown(brief)})
    for name in ("report.html", "contact_sheet.png", "scores.json", "estimates.safetensors"):
        tracker.artifact(EVALUATION / name, "evaluation")
    tracker.replay()
    print_scores(brief)


def make_evaluator(
    card: Card | None = None, build: Path = BUILD, stage: Stage = "evaluate"
) -> tuple[Evaluator, dict[str, Any]]:
    """The evaluator of a dataset whose stages have run in `build`, and its protocol; default: that of params.yaml.

    stage: what its lines of progress begin with. Close its engine when nothing more is evaluated.
    """
    from dpgan.data.prepare import data_hash, open_prepared
    from dpgan.evaluation.engine import Engine
    from dpgan.evaluation.evaluate import Evaluator, protocol
    from dpgan.evaluation.features import chosen
    from dpgan.evaluation.judges import load_judge
    from dpgan.evaluation.lpips import Lpips
    from dpgan.evaluation.reference import References
    from dpgan.hardware import find_place, use_all_cores

    params, own = setup()
    card = card or own
    prepared, judge = build / PREPARED.name, build / JUDGE.name
    if read_json(prepared / "meta.json", "prepare")["card"] != card.digest:
        raise UserError(
            f"{prepared}: prepared with another version of data/{card.name}/dataset.yaml, whose classes may differ; "
            "`dvc repro judge` prepares it again"
        )
    use_all_cores()
    engine = Engine(find_place(params.run.device))
    extractor = chosen(params.evaluate.inception_weights)
    train, val = (open_prepared(prepared, split) for split in ("train", "val"))
    network = load_judge(need(judge, "judge"), card)
    references = References(REFERENCES, data_hash(prepared))
    lpips = Lpips(params.evaluate.lpips) if params.evaluate.lpips else None
    evaluator = Evaluator(
        card, train, val, extractor, network, params.evaluate, references, lpips, engine, partial(Progress, stage)
    )
    judge_sha256 = identities.judge(judge)
    return evaluator, protocol(extractor, network.name, judge_sha256, references.data_hash, params.evaluate, card)


def plain(scores: Scores) -> dict[str, float]:
    """The plain numbers, which the gate, DVC and MLflow read."""
    return {name: score.value for name, score in scores.items()}


def trained_settings(manifest: Mapping[str, Any]) -> TrainSettings:
    return TrainSettings.model_validate(manifest["settings"])


def _generator(card: Card, manifest: Mapping[str, Any], name: str) -> Generator:
    from dpgan.models.generators import build_generator
    from dpgan.training.checkpoint import load_state

    generator = build_generator(**trained_settings(manifest).generator_arguments(card.num_classes))
    load_state(generator, TRAINED / f"{name}.safetensors")
    return generator.eval()
