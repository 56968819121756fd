"""From raw files to prepared arrays and the judge that is trained on them."""

from __future__ import annotations

from pathlib import Path

from dpgan.checks import check_fits
from dpgan.config import need, train_settings
from dpgan.files import new_folder, write_json
from dpgan.labels import load_card
from dpgan.progress import Progress
from dpgan.stages.build import (
    INDEX,
    JUDGE,
    JUDGE_SCORES,
    PREPARED,
    SCANNED,
    VALIDATION,
    checked,
    need_raw,
    read_accepted,
    read_json,
    setup,
    splits,
)


def render() -> None:
    """Render the raw files of a procedural dataset into its raw folder (a stage of data/<name>/dvc.yaml)."""
    from dpgan.data.toyscapes import write_dataset

    name = Path.cwd().name
    card = load_card(name, Path.cwd().parent)
    write_dataset(card, Path("raw"), progress=Progress("render"))


def index() -> None:
    """Scan the raw pairs into build/index.parquet."""
    from dpgan.data.facts import offered
    from dpgan.data.index import scan, write_index

    params, card = setup()
    need_raw(params, card)
    frame = scan(card, Path(params.raw), Progress("index", "pairs"), memory=SCANNED)
    pairs = offered(frame, card)._replace(scored=True)  # what maps hold is the contract's to say first
    check_fits(params, train_settings(params, card.preset), card, pairs)
    write_index(frame, INDEX)
    if card.select:
        print(f"index     {len(frame)} of them are what the card selects")


def validate() -> None:
    """Hold the index against the data contract; leave out faulty pairs, or stop the pipeline where they are many."""
    from dpgan.data.index import read_index
    from dpgan.data.report import write_report
    from dpgan.data.validation import SHOWN, describe, raise_on_errors

    params, card = setup()
    frame = read_index(need(INDEX, "index"))
    accepted = read_accepted(card)
    with new_folder(VALIDATION) as folder:
        report = checked(params, frame, card, accepted, docs=folder / "data_docs")
        write_report(report, frame, card, Path(params.raw), folder, accepted)
    for finding in report.of("warning") if report.stops else report.findings:
        print(*describe(finding), sep="\n")
    print(f"validate  report: {VALIDATION / 'report.html'}", flush=True)
    raise_on_errors(report)
    out, warnings = list(report.quarantined), len(report.of("warning"))
    if out:
        more = f" and {len(out) - SHOWN} more" if len(out) > SHOWN else ""
        print(f"validate  left out: {', '.join(out[:SHOWN])}{more}; {VALIDATION / 'quarantine.json'} says why")
    print(f"validate  {len(frame) - len(out)} pairs, {len(out)} left out, {warnings} warnings")


def prepare() -> None:
    """Resize once into memory-mapped uint8 arrays."""
    from dpgan.data import prepare as prepared
    from dpgan.data.index import read_index

    params, card = setup()
    frame = read_index(need(INDEX, "index"))
    left_out = read_json(VALIDATION / "quarantine.json", "validate")
    prepared.prepare(frame, card, Path(params.raw), PREPARED, Progress("prepare", "pairs"), left_out=left_out)


def judge() -> None:
    """Train the segmentation network behind mIoU on the real training photos, or check a published one."""
    import numpy as np

    from dpgan.evaluation.engine import Engine
    from dpgan.evaluation.judges import make_judge, save_judge
    from dpgan.evaluation.measure import Jobs, Observer, measure, photos
    from dpgan.evaluation.readings import scores
    from dpgan.hardware import find_place, use_all_cores

    params, card = setup()
    train, val = splits(params, card)
    use_all_cores()
    engine = Engine(find_place(params.run.device))
    network = make_judge(params.judge, card, (train.images, train.labels), params.seed, Progress("judge"), engine)
    save_judge(network, JUDGE)
    jobs = Jobs(val.labels, val.images, np.arange(len(val.ids)))
    report = Progress("judge", subject="the real validation photos")
    seen = measure(Observer(photos, (0,), None, network, card), jobs, engine, report)
    engine.close()
    real = scores(seen.tables[0], network.name, card)
    brief = {name: value for name, value in real.items() if "/" not in name}
    write_json(JUDGE_SCORES, {"judge": network.name, "n": len(val.ids), "real_photos": brief})
    print(f"judge     {network.name}: mIoU {real[f'miou_{network.name}']:.1f} on {len(val.ids)} real validation photos")
