"""What the registry makes of what was trained."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dpgan.config import need
from dpgan.errors import UserError
from dpgan.files import write_json
from dpgan.identities import is_of_measure
from dpgan.progress import Stage
from dpgan.stages.build import EVALUATION, PROMOTION, SCORES, TRAINED, read_json, setup
from dpgan.stages.evaluate import make_evaluator, trained_settings

if TYPE_CHECKING:
    from dpgan.registry.gate import Evaluation
    from dpgan.registry.packaging import Package


def promote() -> None:
    """Register the candidate, and make it champion if it beats floor and champion."""
    from safetensors.torch import load_file

    from dpgan.evaluation import MEASURE
    from dpgan.evaluation.intervals import load_estimates
    from dpgan.registry import packaging
    from dpgan.registry import promote as registry
    from dpgan.registry.gate import Evaluation
    from dpgan.registry.provenance import training_facts
    from dpgan.registry.records import PROMOTED

    params, card = setup()
    manifest = read_json(TRAINED / "manifest.json", "train")
    scored = read_json(EVALUATION / "scores.json", "evaluate")
    brief = read_json(SCORES, "evaluate")
    if not is_of_measure(scored["protocol"], MEASURE):
        raise UserError(f"{EVALUATION}: scored by another version of dpgan; `dvc repro evaluate` scores it again")

    def evaluation(name: str, finite: bool) -> Evaluation:
        return Evaluation(load_estimates(need(EVALUATION / name, "evaluate")), finite, scored["protocol"])

    def rescore(package: Package) -> Evaluation:
        print("promote   scoring the champion again: judge, data or settings have changed", flush=True)
        found = score(package, "the champion", "promote")
        if found.protocol != scored["protocol"]:
            raise UserError(
                f"{EVALUATION}: scored with another judge, data or settings than there are now; `dvc repro evaluate` "
                "scores the candidate again"
            )
        return found

    arguments = trained_settings(manifest).generator_arguments(card.num_classes)
    config = packaging.generator_config(card, arguments, manifest["facts"]["data_hash"])
    content = packaging.Package(
        load_file(TRAINED / "best.safetensors"), config, training_facts(manifest),
        files=(EVALUATION / "contact_sheet.png", EVALUATION / "report.html"),
    )  # fmt: skip
    candidate = registry.Candidate(
        card, manifest["run_id"], content,
        evaluation=evaluation("estimates.safetensors", brief["finite_best"]),
        floor=evaluation("floor.safetensors", True),
        ceiling=scored["ceiling"],
        facts=manifest["facts"],
    )  # fmt: skip
    outcome = registry.promote(Path.cwd(), candidate, params.gate, rescore)
    write_json(
        PROMOTION,
        {
            "model": outcome.model,
            "version": outcome.version,
            "verdict": outcome.outcome,
            "promoted": outcome.outcome == PROMOTED,
            "reasons": list(outcome.reasons),
            "champion": outcome.champion,
        },
    )
    print(f"promote   {outcome.model} version {outcome.version}: {outcome.outcome}")
    for reason in outcome.reasons:
        print(f"          {reason}")


def score(package: Package, whose: str, stage: Stage) -> Evaluation:
    """The scores of a registered generator under the present judge, data and settings.

    `whose` names it in progress and errors, `stage` begins the lines of progress.
    """
    from dpgan.evaluation.evaluate import all_finite
    from dpgan.registry.gate import Evaluation

    evaluator, protocol = make_evaluator(stage=stage)
    card = evaluator.card
    if package.config["classes"] != [info.name for info in card.classes]:
        raise UserError(
            f"{whose} paints other classes than data/{card.name}/dataset.yaml has now, so it cannot be scored on this "
            "data; `dpgan registry promote NUMBER --reason TEXT` makes a version champion without a comparison"
        )
    generator = package.generator()
    with closing(evaluator.engine):
        scores = evaluator.generator(generator, whose)
    return Evaluation(scores, all_finite(generator), protocol)
