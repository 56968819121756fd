"""What the registry makes of what was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dpgan.files import write_json
from dpgan.progress import Progress
from dpgan.stages.build import EVALUATION, PROMOTION, SCORES, TRAINED, read_json, setup
from dpgan.stages.evaluate import make_evaluator, plain, trained_settings


def promote() -> None:
    """Register the candidate, and make it champion if it beats floor and champion."""
    from safetensors.torch import load_file

    from dpgan.registry import packaging
    from dpgan.registry import promote as registry
    from dpgan.registry.gate import Evaluation
    from dpgan.registry.provenance import training_facts

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
        evaluator, _ = make_evaluator()
        scores = evaluator.generator(generator.eval().to(evaluator.device), Progress("champion"), "the champion")
        return evaluation(plain(scores), all_finite(generator))

    arguments = trained_settings(manifest).generator_arguments(card.num_classes)
    config = packaging.generator_config(card, arguments, manifest["facts"]["data_hash"])
    content = packaging.Package(
        load_file(TRAINED / "best.safetensors"), config, training_facts(manifest),
        files=(EVALUATION / "contact_sheet.png", EVALUATION / "report.html"),
    )  # fmt: skip
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
