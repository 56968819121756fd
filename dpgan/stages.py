"""The stages of dvc.yaml: each reads what the stages before it left in build/, and leaves its own.

They compose the floors below and hold no logic of their own. Heavy imports stand inside, so that `dpgan index`
does not wait for torch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpgan.config import BUILD, Params, TrainSettings, check_fits, identity, load_params, need, train_settings
from dpgan.errors import Stopped
from dpgan.files import file_sha256, new_folder, write_json
from dpgan.labels import Card, load_card
from dpgan.progress import Progress

if TYPE_CHECKING:
    import torch

    from dpgan.data.prepare import Split
    from dpgan.evaluation.evaluate import Evaluator
    from dpgan.models.generators import Generator
    from dpgan.training.build import Job

INDEX = BUILD / "index.parquet"
VALIDATION = BUILD / "validation"
PREPARED = BUILD / "prepared"
JUDGE, JUDGE_SCORES = BUILD / "judge.safetensors", BUILD / "judge.json"
TRAINED, TRAIN_SCORES = BUILD / "train", BUILD / "train.json"
EVALUATION, SCORES = BUILD / "evaluation", BUILD / "scores.json"
PROMOTION = BUILD / "promotion.json"


def _setup() -> tuple[Params, Card]:
    """params.yaml and the dataset's card; every mistake in them comes up before a stage starts."""
    params = load_params()
    card = load_card(params.dataset)
    train_settings(params, card.preset)
    return params, card


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(need(path, stage).read_text())
    return content


def render() -> None:
    """Render the raw files of a procedural dataset into its raw folder (a stage of data/<name>/dvc.yaml)."""
    from dpgan.data.toyscapes import write_dataset

    name = Path.cwd().name
    card = load_card(name, Path.cwd().parent)
    write_dataset(card, Path("raw"), workers=os.cpu_count() or 1, progress=Progress("render"))


def index() -> None:
    """Scan the raw pairs into build/index.parquet."""
    from dpgan.data.index import scan, write_index

    params, card = _setup()
    frame = scan(card, Path(params.raw), Progress("index", "pairs"))
    write_index(frame, INDEX)


def validate() -> None:
    """Hold the index against the data contract; stop the pipeline where it is broken."""
    from dpgan.data.index import read_index
    from dpgan.data.validation import raise_on_errors, write_report
    from dpgan.data.validation import validate as findings_in

    _, card = _setup()
    frame = read_index(need(INDEX, "index"))
    findings = findings_in(frame, card)
    with new_folder(VALIDATION) as folder:
        write_report(findings, frame, card, folder)
    for finding in findings:
        print(f"validate  {finding.severity}: {finding.expectation} ({finding.count}): {finding.remedy}")
    raise_on_errors(findings)
    print(f"validate  {len(frame)} pairs, {len(findings)} warnings; report: {VALIDATION / 'report.html'}")


def prepare() -> None:
    """Resize once into memory-mapped uint8 arrays."""
    from dpgan.data import prepare as prepared
    from dpgan.data.index import read_index

    params, card = _setup()
    frame = read_index(need(INDEX, "index"))
    prepared.prepare(frame, card, Path(params.raw), PREPARED, Progress("prepare", "pairs"))


def judge() -> None:
    """Train the segmentation network behind mIoU on the real training photos."""
    from dpgan.evaluation.evaluate import label_batches, photo_batches
    from dpgan.evaluation.segmentation import confusion, iou, save_judge, train_judge
    from dpgan.hardware import choose_device, use_all_cores

    params, card = _setup()
    train, val = _splits()
    use_all_cores()
    device = choose_device(params.run.device)
    network = train_judge(train.images, train.labels, card.void, params.judge, params.seed, Progress("judge"), device)
    save_judge(network, JUDGE)
    batch = params.evaluate.batch
    pairs = zip(photo_batches(val, batch), label_batches(val, batch), strict=True)
    table = confusion(network, pairs, card.num_classes, card.void)
    _, miou = iou(table, card.evaluated)
    write_json(JUDGE_SCORES, {"miou_real_photos": miou, "n": len(val.ids)})
    print(f"judge     mIoU {miou:.1f} on {len(val.ids)} real validation photos")


def train() -> None:
    """Train DP-GAN on N workers; an interrupted run goes on from its last checkpoint, in the same MLflow run."""
    from dpgan.data.prepare import data_hash
    from dpgan.models.perceptual import check_vgg19
    from dpgan.registry.provenance import provenance
    from dpgan.registry.tracking import Tracker, open_run, tracking_uri
    from dpgan.training.build import Job
    from dpgan.training.launch import launch, resources, start_ray

    params, card = _setup()
    settings = train_settings(params, card.preset)
    check_fits(settings, params.run, card.size, len(_splits()[0].ids))
    if settings.losses.perceptual and settings.perceptual_network == "vgg19":
        check_vgg19(params.run.vgg19)
    start_ray(params.run)
    resources(params.run)  # what is missing comes up before a run is opened
    data = data_hash(PREPARED)
    trains = {"settings": settings.model_dump(mode="json"), "seed": params.seed, "data": data, "card": card.digest}
    who = identity(trains)
    root = Path.cwd()
    folder = root / "runs" / f"{card.name}-{who}"
    facts = {"identity": who, "data_hash": data, **provenance(root)}
    fork = root / settings.fork if settings.fork else None
    job = Job(card, settings, params.run, params.seed, trains, PREPARED.absolute(), folder, facts, fork)
    _tell_start(job)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "mlflow_run"
    run_id = open_run(
        root,
        card.name,
        name=f"{settings.preset}-{who[:8]}",
        params={
            "dataset": card.name,
            "seed": params.seed,
            "train": settings.model_dump(),
            "run": params.run.model_dump(),
        },
        tags={**facts, "mlflow.source.name": "dpgan train", "mlflow.source.git.commit": facts["git.commit"]},
        run_id=kept.read_text() if kept.exists() else None,
    )
    kept.write_text(run_id)
    tracker = Tracker(tracking_uri(root), run_id, folder / "spool")
    print(f"train     preset {settings.preset}, {params.run.workers} workers, MLflow run {run_id}", flush=True)
    with _run_status(tracker.finish):
        launch(job, tracker, Progress("train"))
    result = json.loads((folder / "result.json").read_text())
    with new_folder(TRAINED) as out:
        for name in ("last", "best"):
            shutil.copy2(folder / "candidates" / f"{name}.safetensors", out)
        write_json(
            out / "manifest.json",
            {"run_id": run_id, "settings": settings.model_dump(), "facts": facts, **result},
        )
    best = {f"best_{key}": value for key, value in result.pop("best").items()}
    write_json(TRAIN_SCORES, {**result, **best})
    if tracker.replay():
        shutil.rmtree(folder)


def _tell_start(job: Job) -> None:
    """Check what the run starts from, before anything is opened; name interrupted runs that it does not go on with."""
    from dpgan.training.checkpoint import Checkpoints, differences, starting_point

    if starting_point(job.checkpoints(), job.fork) is not None:
        return
    for other in sorted(job.folder.parent.glob(f"{job.card.name}-*")):
        found = Checkpoints(other / "checkpoints", {}).newest()
        if found is not None:
            changed = "; ".join(differences(found.trains, job.trains))
            name = other.relative_to(Path.cwd())
            print(f"train     {name} was interrupted and stays as it is: this run differs from it ({changed}); "
                  f"`train: {{fork: {name}}}` would go on from it")  # fmt: skip


@contextmanager
def _run_status(finish: Callable[[str], None]) -> Iterator[None]:
    """The MLflow run ends as it really ended; SIGTERM counts as an interruption."""

    def interrupted(number: int, _: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    except KeyboardInterrupt:
        finish("KILLED")
        raise
    except BaseException:
        finish("FAILED")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    finish("FINISHED")


def evaluate() -> None:
    """Score the candidates on the validation split, next to floor and ceiling; paint the contact sheet."""
    from dpgan.evaluation.evaluate import all_finite
    from dpgan.registry.tracking import Tracker, tracking_uri

    params, card = _setup()
    manifest = _read_json(TRAINED / "manifest.json", "train")
    evaluator, protocol = _evaluator()
    sets: dict[str, dict[str, float]] = {}
    generators = {name: _generator(card, manifest, name, evaluator.device) for name in ("last", "best")}
    for name, generator in generators.items():
        if name == "best" and manifest["best"]["images"] == manifest["images"]:
            sets[name] = sets["last"]  # the same weights
        else:
            sets[name] = evaluator.generator(generator, Progress(f"eval {name}"))
    print("evaluate  floor and ceiling", flush=True)
    sets |= {"floor": evaluator.floor(), "ceiling": evaluator.ceiling()}

    with new_folder(EVALUATION) as folder:
        evaluator.contact_sheet(generators["best"], folder / "contact_sheet.png")
        write_json(folder / "scores.json", {"n": len(evaluator.val.ids), "protocol": protocol, **sets})
    brief = {name: {k: v for k, v in scores.items() if not k.startswith("iou_")} for name, scores in sets.items()}
    finite = {f"finite_{name}": all_finite(generator) for name, generator in generators.items()}
    write_json(SCORES, {"n": len(evaluator.val.ids), "noise_seed": params.evaluate.noise_seed, **finite, **brief})
    tracker = Tracker(tracking_uri(Path.cwd()), manifest["run_id"], Path("runs") / f"spool-{manifest['run_id']}")
    tracker.metrics({f"eval/{name}/{k}": v for name, s in brief.items() for k, v in s.items()}, manifest["images"])
    tracker.tags({"mlflow.note.content": _markdown(brief)})
    tracker.artifact(EVALUATION / "contact_sheet.png", "evaluation")
    tracker.artifact(EVALUATION / "scores.json", "evaluation")
    _print_scores(brief)


def promote() -> None:
    """Register the candidate, and make it champion if it beats floor and champion."""
    from safetensors.torch import load_file

    from dpgan.registry import packaging
    from dpgan.registry import promote as registry
    from dpgan.registry.gate import Evaluation

    _, card = _setup()
    manifest = _read_json(TRAINED / "manifest.json", "train")
    scored = _read_json(EVALUATION / "scores.json", "evaluate")
    brief = _read_json(SCORES, "evaluate")
    protocol = json.dumps(scored["protocol"], sort_keys=True)

    def evaluation(scores: Mapping[str, float], finite: bool) -> Evaluation:
        name = scored["protocol"]["features"]
        return Evaluation(scores[f"fid_{name}"], scores["miou_trained"], scores, finite, protocol)

    def rescore(package: packaging.Package) -> Evaluation:
        from dpgan.evaluation.evaluate import all_finite
        from dpgan.models.generators import build_generator

        generator = build_generator(**package.config["generator"])
        generator.load_state_dict(dict(package.weights))
        print("promote   scoring the champion again: judge, data or settings have changed", flush=True)
        evaluator, _ = _evaluator()
        scores = evaluator.generator(generator.eval().to(evaluator.device), Progress("champion"))
        return evaluation(scores, all_finite(generator))

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


def summary() -> None:
    """Say where to look: the champion, the scores with floor and ceiling, the pictures, the UI."""
    from dpgan.registry.promote import champion_version

    promotion = _read_json(PROMOTION, "promote")
    model, version = promotion["model"], promotion["version"]
    champion = champion_version(Path.cwd(), _setup()[1].name)
    print()
    _print_scores(_read_json(SCORES, "evaluate"))
    print()
    verdict = "promoted" if promotion["promoted"] else "REFUSED"
    print(f"  candidate       {model} version {version}: {verdict}; {'; '.join(promotion['reasons'])}")
    named = f"{model} version {champion}  (models:/{model}@champion)" if champion else "none"
    print(f"  champion        {named}")
    print(f"  contact sheet   {EVALUATION / 'contact_sheet.png'}")
    print(f"  data report     {VALIDATION / 'report.html'}")
    print("  MLflow UI       make ui")


def _print_scores(sets: Mapping[str, Any]) -> None:
    rows = {
        "floor": "floor (class colours)",
        "last": "last",
        "best": "best on hold-out",
        "ceiling": "ceiling (real photos)",
    }
    keys = [k for k in sets["best"] if not k.endswith("_deviation")]
    print(f"  {'':<23}" + "".join(f"{key:>14}" for key in keys))
    for name, title in rows.items():
        print(f"  {title:<23}" + "".join(f"{sets[name][key]:>14.1f}" for key in keys))


def _markdown(sets: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as a table, for the run's description in the UI."""
    keys = list(sets["best"])
    rows = [f"| {name} | " + " | ".join(f"{scores[key]:.1f}" for key in keys) + " |" for name, scores in sets.items()]
    return "\n".join(["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|", *rows])


def _splits() -> tuple[Split, Split]:
    from dpgan.data.prepare import open_prepared

    return open_prepared(PREPARED, "train"), open_prepared(PREPARED, "val")


def _evaluator() -> tuple[Evaluator, dict[str, Any]]:
    from dpgan.data.prepare import data_hash
    from dpgan.evaluation.evaluate import Evaluator, protocol
    from dpgan.evaluation.features import chosen
    from dpgan.evaluation.segmentation import load_judge
    from dpgan.hardware import choose_device, use_all_cores

    params, card = _setup()
    use_all_cores()
    device = choose_device(params.run.device)
    extractor = chosen(params.evaluate.inception_weights, device)
    train, val = _splits()
    network = load_judge(need(JUDGE, "judge"), card.num_classes).to(device)
    evaluator = Evaluator(card, train, val, extractor, network, params.evaluate)
    return evaluator, protocol(extractor, file_sha256(JUDGE), data_hash(PREPARED), params.evaluate)


def _trained_settings(manifest: Mapping[str, Any]) -> TrainSettings:
    return TrainSettings.model_validate(manifest["settings"])


def _generator(card: Card, manifest: Mapping[str, Any], name: str, device: torch.device) -> Generator:
    from dpgan.models.generators import build_generator
    from dpgan.training.checkpoint import load_state

    generator = build_generator(**_trained_settings(manifest).generator_arguments(card.num_classes))
    load_state(generator, TRAINED / f"{name}.safetensors")
    return generator.eval().to(device)
