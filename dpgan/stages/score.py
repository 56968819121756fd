"""Scores of what was trained, and what the registry makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpgan.config import TrainSettings, need
from dpgan.files import file_sha256, new_folder, write_json
from dpgan.labels import Card
from dpgan.progress import Progress
from dpgan.stages.build import (
    EVALUATION,
    JUDGE,
    PREPARED,
    PROMOTION,
    REFERENCES,
    SCORES,
    TRAINED,
    read_json,
    setup,
    splits,
)
from dpgan.stages.summary import markdown, print_scores

if TYPE_CHECKING:
    import torch

    from dpgan.evaluation.evaluate import Evaluator, Scores
    from dpgan.models.generators import Generator


def evaluate() -> None:
    """Score the candidates on the validation split, next to floor and ceiling; paint the contact sheet."""
    from dpgan.evaluation.evaluate import all_finite
    from dpgan.evaluation.intervals import save_estimates
    from dpgan.evaluation.readings import of_real
    from dpgan.registry.tracking import Tracker, tracking_uri

    _, card = setup()
    manifest = read_json(TRAINED / "manifest.json", "train")
    evaluator, protocol = _evaluator()
    sets: dict[str, Scores] = {}
    generators = {name: _generator(card, manifest, name, evaluator.device) for name in ("last", "best")}
    for name, generator in generators.items():
        if name == "best" and manifest["best"]["images"] == manifest["images"]:
            sets[name] = sets["last"]  # the same weights
        else:
            weights = str(TRAINED / f"{name}.safetensors")
            sets[name] = evaluator.generator(generator, Progress(f"eval {name}"), weights)
    print("evaluate  floor and ceiling", flush=True)
    sets |= {"floor": evaluator.floor(), "ceiling": evaluator.ceiling()}

    size: dict[str, Any] = {"n": len(evaluator.val.ids), "seeds": list(evaluator.seeds)}
    if evaluator.settings.objects:
        size["objects"] = evaluator.objects.counts()
    values = {name: _values(scores) for name, scores in sets.items()}
    for name in values.keys() - {"ceiling"}:
        values[name] |= of_real(values[name], values["ceiling"])
    intervals = {name: {key: score.record() for key, score in scores.items()} for name, scores in sets.items()}
    with new_folder(EVALUATION) as folder:
        evaluator.contact_sheet(generators["best"], folder / "contact_sheet.png")
        save_estimates(sets["best"], folder / "estimates.safetensors")  # what a paired comparison reads
        write_json(folder / "scores.json", {**size, "protocol": protocol, **values, "intervals": intervals})
    brief = {name: {k: v for k, v in scores.items() if not k.startswith("iou_")} for name, scores in values.items()}
    finite = {f"finite_{name}": all_finite(generator) for name, generator in generators.items()}
    write_json(SCORES, {**size, **finite, **brief})
    tracker = Tracker(tracking_uri(Path.cwd()), manifest["run_id"], Path("runs") / f"spool-{manifest['run_id']}")
    tracker.metrics({f"eval/{name}/{k}": v for name, s in brief.items() for k, v in s.items()}, manifest["images"])
    tracker.tags({"mlflow.note.content": markdown(brief)})
    for name in ("contact_sheet.png", "scores.json", "estimates.safetensors"):
        tracker.artifact(EVALUATION / name, "evaluation")
    print_scores(brief)


def promote() -> None:
    """Register the candidate, and make it champion if it beats floor and champion."""
    from safetensors.torch import load_file

    from dpgan.registry import packaging
    from dpgan.registry import promote as registry
    from dpgan.registry.gate import Evaluation

    _, card = setup()
    manifest = read_json(TRAINED / "manifest.json", "train")
    scored = read_json(EVALUATION / "scores.json", "evaluate")
    brief = read_json(SCORES, "evaluate")
    protocol = json.dumps(scored["protocol"], sort_keys=True)

    def evaluation(scores: Mapping[str, float], finite: bool) -> Evaluation:
        features, judge = scored["protocol"]["features"], scored["protocol"]["judge"]
        return Evaluation(scores[f"fid_{features}"], scores[f"miou_{judge}"], scores, finite, protocol)

    def rescore(package: packaging.Package) -> Evaluation:
        from dpgan.evaluation.evaluate import all_finite
        from dpgan.models.generators import build_generator

        generator = build_generator(**package.config["generator"])
        generator.load_state_dict(dict(package.weights))
        print("promote   scoring the champion again: judge, data or settings have changed", flush=True)
        evaluator, _ = _evaluator()
        scores = evaluator.generator(generator.eval().to(evaluator.device), Progress("champion"), "the champion")
        return evaluation(_values(scores), all_finite(generator))

    arguments = _trained_settings(manifest).generator_arguments(card.num_classes)
    config = packaging.generator_config(card, arguments, manifest["facts"]["data_hash"])
    content = packaging.Package(load_file(TRAINED / "best.safetensors"), config)
    outcome = registry.promote(
        Path.cwd(), card.name, manifest["run_id"], content,
        candidate=evaluation(scored["best"], brief["finite_best"]),
        floor=evaluation(scored["floor"], True),
        ceiling=evaluation(scored["ceiling"], True),
        rescore=rescore,
    )  # fmt: skip
    write_json(
        PROMOTION,
        {
            "model": outcome.model,
            "version": outcome.version,
            "promoted": outcome.verdict.promoted,
            "reasons": list(outcome.verdict.reasons),
            "champion": outcome.champion,
        },
    )
    print(
        f"promote   {outcome.model} version {outcome.version}: {'promoted' if outcome.verdict.promoted else 'refused'}"
    )
    for reason in outcome.verdict.reasons:
        print(f"          {reason}")


def _evaluator() -> tuple[Evaluator, dict[str, Any]]:
    from dpgan.data.prepare import data_hash
    from dpgan.evaluation.evaluate import Evaluator, protocol
    from dpgan.evaluation.features import chosen
    from dpgan.evaluation.judges import load_judge
    from dpgan.evaluation.lpips import Lpips
    from dpgan.evaluation.reference import References
    from dpgan.hardware import choose_device, use_all_cores

    params, card = setup()
    use_all_cores()
    device = choose_device(params.run.device)
    extractor = chosen(params.evaluate.inception_weights, device)
    train, val = splits()
    network = load_judge(need(JUDGE, "judge"), card).to(device)
    references = References(REFERENCES, data_hash(PREPARED))
    lpips = Lpips(params.evaluate.lpips).to(device) if params.evaluate.lpips else None
    evaluator = Evaluator(card, train, val, extractor, network, params.evaluate, references, lpips)
    return evaluator, protocol(extractor, network.name, file_sha256(JUDGE), references.data_hash, params.evaluate)


def _values(scores: Scores) -> dict[str, float]:
    """The plain numbers, which the gate, DVC and MLflow read."""
    return {name: score.value for name, score in scores.items()}


def _trained_settings(manifest: Mapping[str, Any]) -> TrainSettings:
    return TrainSettings.model_validate(manifest["settings"])


def _generator(card: Card, manifest: Mapping[str, Any], name: str, device: torch.device) -> Generator:
    from dpgan.models.generators import build_generator
    from dpgan.training.checkpoint import load_state

    generator = build_generator(**_trained_settings(manifest).generator_arguments(card.num_classes))
    load_state(generator, TRAINED / f"{name}.safetensors")
    return generator.eval().to(device)
