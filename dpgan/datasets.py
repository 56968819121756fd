"""`dpgan data add` and `dpgan data check`: datasets of one's own, and a look at any."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from dpgan.checks import misfits
from dpgan.config import BUILD, PARAMS, Params, load_params, need, train_settings
from dpgan.data.layout import need_plain_names, other_edition, walk
from dpgan.errors import UserError
from dpgan.files import new_folder, write_json
from dpgan.labels import Card, card_path, known_datasets, load_card
from dpgan.progress import Progress
from dpgan.settings import unknown_name
from dpgan.stages.build import INDEX, VALIDATION, accepted_path, checked, read_accepted, read_json

if TYPE_CHECKING:
    import pandas as pd

    from dpgan.data.validation import Finding

DATA = Path("data")
SHOWN = 3  # pairs of a finding on the terminal
PUBLISHED = ["cityscapes", "ade20k", "ade20k-outdoor", "coco-stuff", "camvid"]  # what a folder may turn out to be
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def add(name: str, folder: Path, copy: bool) -> int:
    """Describe a folder of your own: write data/NAME, version the files, and say what was found."""
    from dpgan.data.propose import propose
    from dpgan.data.propose.write import card_yaml, readme
    from dpgan.data.versions import need_project, track

    load_params()  # in a project, or nowhere
    _check_name(name)
    if copy:
        need_project(Path.cwd())
    if not folder.is_dir() or not any(walk(folder)):
        what = "no such folder" if not folder.is_dir() else "an empty folder"
        raise UserError(f"{folder}: {what}; give the folder that holds the photos and label maps")
    console = Console(highlight=False, soft_wrap=True)
    if known := _published(folder):
        others = "".join(f" (or {card.name}: {card.title})" for card in known[1:])
        console.print(f"This looks like {known[0].title}, which has a card{others}. In params.yaml, set:")
        console.print(f"\n    dataset: {known[0].name}\n    raw: {folder}\n\nthen: dvc repro validate", markup=False)
        return 0
    proposal = propose(folder, name)
    params = _params(proposal.card, folder)
    unfit = misfits(params, train_settings(params, proposal.card.preset), proposal.card, proposal.pairs)
    proposal = proposal._replace(suspicious=[*proposal.suspicious, *map(_sentence, unfit)])
    if proposal.lists and not copy:
        lists = ", ".join(proposal.lists)
        raise UserError(
            f"{folder}: has no split, and --no-copy leaves it as it is: write {lists} there yourself, "
            "one id per line (the name without its ending); or leave --no-copy out, and dpgan writes them into its copy"
        )
    here = DATA / name
    with new_folder(here) as partial:
        if copy:
            _copy(folder, partial / "raw")
            for path, ids in proposal.lists.items():
                (partial / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
                (partial / "raw" / path).write_bytes(("\n".join(ids) + "\n").encode())
        write_json(partial / "accepted.json", {})  # no version yet; a dependency of the pipeline
        (partial / "dataset.yaml").write_text(card_yaml(proposal.card), encoding="utf-8")
        (partial / "README.md").write_text(readme(proposal), encoding="utf-8")
    if copy:
        try:
            track(here / "raw", Path.cwd())
        except BaseException:
            shutil.rmtree(here)
            raise
    _tell(console, "Found", proposal.found)
    _tell(console, "Suspicious", proposal.suspicious)
    raw = here / "raw" if copy else folder
    console.print(f"\nWritten: {card_path(name)}. Read it, then set in params.yaml:")
    console.print(f"\n    dataset: {name}\n    raw: {raw}\n\nthen: dpgan data check {name}", markup=False)
    if copy:
        console.print(
            f"The files are copied to {raw} and versioned: commit data/{name} with git, `dvc push` shares them."
        )
    else:
        console.print(f"The files stay in {raw}, unversioned.")
    return 0


def check(which: str, folder_of_report: Path | None) -> int:
    """Hold a dataset, or any folder, against the data contract; change nothing but the report's folder.

    The exit code: 0 fine (there may be warnings), 1 the contract is broken.
    """
    from dpgan.data.index import scan
    from dpgan.data.report import write_report

    if folder_of_report and folder_of_report.exists() and not (folder_of_report / "report.html").is_file():
        raise UserError(f"{folder_of_report}: is there already, and is no report; give the report a folder of its own")
    console = Console(highlight=False)
    card, raw, told = _subject(which)
    params = _params(card, raw)
    for line in told:
        console.print(line, markup=False)
    frame = scan(card, raw, Progress("check", "pairs"))
    accepted = read_accepted(card)
    folder = folder_of_report or BUILD / "check" / card.name
    with new_folder(folder) as partial:
        report = checked(params, frame, card, accepted, docs=partial / "data_docs")
        write_report(report, frame, card, raw, partial, accepted)
    if report.findings:
        console.print(_table(report.findings))
    for line in report.stops:
        console.print(line, style="red", markup=False)
    counts = ", ".join(f"{(frame['split'] == split).sum()} in {split}" for split in sorted(card.splits))
    verdict = "Not fit to train on" if report.stops else "Fit to train on"
    console.print(
        f"{card.name}: {counts}. {verdict}: {_count(len(report.of('error')) or len(report.stops), 'error')}, "
        f"{_count(len(report.of('warning')), 'warning')}, {_count(len(report.quarantined), 'pair')} "
        f"{'faulty' if report.stops else 'left out'}. Report: {folder / 'report.html'}", soft_wrap=True
    )  # fmt: skip
    return 1 if report.stops else 0


def diff(before: str, after: str | None) -> int:
    """Say what changed between two versions of the dataset: git revisions, files of an index, or the workspace."""
    from dpgan.data.diff import describe
    from dpgan.data.diff import diff as compare
    from dpgan.data.facts import dataset_hash

    card = load_card(load_params().dataset)
    old, new = (_index(version, card.name) for version in (before, after))
    for version, frame in ((before, old), (after, new)):
        counts = ", ".join(f"{(frame['split'] == split).sum()} in {split}" for split in sorted(card.splits))
        print(f"{card.name} {version or 'in build/'}: {counts}; dataset hash {dataset_hash(frame)[:16]}")
    print(*describe(compare(old, new, card)), sep="\n")
    return 0


def _index(version: str | None, dataset: str) -> pd.DataFrame:
    """The index of a git revision, in a file, or in build/."""
    from dpgan.data.index import read_index
    from dpgan.data.versions import dataset_at, index_at

    if version is None or Path(version).is_file():
        return read_index(need(INDEX, "index") if version is None else Path(version))
    if (there := dataset_at(version, Path.cwd())) != dataset:
        raise UserError(f"{version} is of dataset {there}, params.yaml of {dataset}: compare versions of one dataset")
    with tempfile.TemporaryDirectory() as folder:
        index_at(version, Path.cwd(), Path(folder) / "index.parquet")
        return read_index(Path(folder) / "index.parquet")


def accept() -> int:
    """Take the dataset as it was validated for the accepted version: what later ones are held against for drift."""
    from dpgan.data.facts import dataset_hash, summary
    from dpgan.data.index import read_index

    card = load_card(load_params().dataset)
    frame = read_index(need(INDEX, "index"))
    found = read_json(VALIDATION / "findings.json", "validate")
    if found.get("dataset_hash") != dataset_hash(frame):
        raise UserError(f"{VALIDATION} is of another index; run `dvc repro validate`, look at its report, then accept")
    if found["stops"]:
        raise UserError(f"the dataset breaks its contract and cannot be accepted: {'; '.join(found['stops'])}")
    left = frame[~frame["sample_id"].isin(read_json(VALIDATION / "quarantine.json", "validate"))]
    path = accepted_path(card)
    write_json(path, {**summary(left, card), "dataset_hash": dataset_hash(frame)})
    print(f"Written: {path}. Commit it: drift is measured against it from now on.")
    return 0


def _sentence(text: str) -> str:
    return (f"T{text[1:]}" if text.startswith("the ") else text) + "."


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"


def _table(findings: Sequence[Finding]) -> Table:
    """A finding a row: how grave, how many pairs, what, one of them, and what to do."""
    table = Table("", Column("pairs", justify="right"), "not met", box=box.SIMPLE_HEAD, leading=1)
    for finding in findings:
        colour = "red" if finding.severity == "error" else "yellow"
        more = [f"and {finding.count - SHOWN} more: in the report"] if finding.count > SHOWN else []
        told = Text("\n").join(
            [
                Text(finding.expectation, "bold"),
                *map(Text, [*finding.details[:SHOWN], *more]),
                Text(finding.remedy, "green"),
            ]
        )
        table.add_row(Text(finding.severity, colour), str(finding.count), told)
    return table


def _subject(which: str) -> tuple[Card, Path, list[str]]:
    """The card and raw folder that NAME or FOLDER means, and what to say of the choice."""
    from dpgan.data.propose import propose

    if which in known_datasets():
        card = load_card(which)
        params = load_params()
        return card, Path(params.raw) if params.dataset == which else DATA / which / "raw", []
    folder = Path(which)
    if not folder.is_dir():
        raise unknown_name("folder or dataset", which, known_datasets(), where="dpgan data check")
    need_plain_names(folder, walk(folder))
    if known := _published(folder):
        return known[0], folder, [f"Checked as {known[0].name}: {known[0].title}."]
    proposal = propose(folder, re.sub(r"[^a-z0-9_-]", "-", folder.resolve().name.lower()) or "folder")
    if proposal.lists:
        raise UserError(
            f"{folder}: has no split; write {' and '.join(proposal.lists)} there (one id per "
            f"line: a file's name without its ending), or let `dpgan data add NAME {folder}` write them into its copy"
        )
    return proposal.card, folder, ["No card fits; checked as `dpgan data add` would describe it.", *proposal.found]


def _params(card: Card, raw: Path) -> Params:
    """The settings of params.yaml, as if it named this dataset; the defaults if there is no params.yaml."""
    given = load_params() if PARAMS.exists() else Params(dataset=card.name, raw=str(raw))
    return given.model_copy(update={"dataset": card.name, "raw": str(raw)})


def _published(folder: Path) -> list[Card]:
    """The cards of published datasets that fit the folder; UserError where it is another edition of one."""
    from dpgan.data.propose import fitting

    cards = [load_card(name) for name in PUBLISHED if name in known_datasets()]
    if found := fitting(folder, cards):
        return found
    files = list(walk(folder))
    for card in cards:
        if other := other_edition(card, files):
            raise UserError(f"{folder}: {other}")
    return []


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a dataset: take up to 63 of a-z, 0-9, - and _, a letter or digit first "
            "(its models will be called dpgan-NAME)"
        )
    if (DATA / name).exists():
        raise UserError(f"{DATA / name} is already there; choose another name, or move that folder away first")


def _copy(folder: Path, raw: Path) -> None:
    """Copy what `walk` finds. The copy and DVC's cache both hold it (the cache shares it where the file system can)."""
    try:
        needed = 2 * sum((folder / path).stat().st_size for path in walk(folder))
        free = shutil.disk_usage(".").free
        if needed > free:
            raise UserError(
                f"{folder}: a versioned copy needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room, or "
                "use --no-copy, which leaves the files where they are, unversioned"
            )
        for path in walk(folder):
            (raw / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / path, raw / path)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be copied: {error.strerror}; mend or remove it") from None


def _tell(console: Console, title: str, sentences: list[str]) -> None:
    console.print(f"\n{title}:" if sentences else f"\n{title}: nothing.")
    for sentence in sentences:
        console.print(f"  - {sentence}", markup=False)
