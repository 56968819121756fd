"""Holding a dataset to its contract: what is not met, which pairs are left out for it, and whether that is too much.

The contract itself is `dpgan.data.contract`. Great Expectations runs it, twice: over every pair, and over the splits
that are left without the faulty pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig

from dpgan.data.contract import Check, Severity, pair_checks, split_checks
from dpgan.data.facts import pair_facts, split_facts
from dpgan.errors import UserError
from dpgan.labels import Card

SHOWN = 5  # files of a finding on the terminal


@dataclass(frozen=True)
class Finding:
    """An expectation that does not hold: how often, why that matters, what to do, where."""

    expectation: str
    severity: Severity
    reason: str
    remedy: str
    samples: list[str]  # sample ids, or the names of splits
    details: list[str]  # a line each: the file, and what is wrong with it
    beside: list[str]  # a photo each to compare with, relative to the raw folder; empty where there is none

    @property
    def count(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Report:
    """What was found in a dataset, and what comes of it."""

    findings: list[Finding]  # of pairs, then of splits; errors first in each
    quarantined: dict[str, str]  # sample id -> why the pair is left out
    stops: list[str]  # why the dataset cannot be used; empty where it can

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]


class _Expectations:
    """A context of Great Expectations that lives in memory."""

    def __init__(self) -> None:
        self.context = gx.get_context(mode="ephemeral")
        self.context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self.source = self.context.data_sources.add_pandas("index")

    def write_docs(self, folder: Path) -> None:
        """Data Docs of all that was held, into `folder`; `index.html` is its first page."""
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())}
        site = {"class_name": "SiteBuilder", "show_how_to_buttons": False, "store_backend": store}
        self.context.add_data_docs_site(
            "docs", {**site, "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"}}
        )
        self.context.build_data_docs(site_names=["docs"])

    def findings(self, name: str, table: pd.DataFrame, checks: list[Check]) -> list[Finding]:
        """The checks that `table` (one row a `sample_id`) does not meet, in their order."""
        for position, check in enumerate(checks):
            expectation = check.expectation
            expectation.meta = {"position": position, "name": check.name}  # the results come back in another order
            expectation.notes = f"**{check.name}** ({check.severity}). {check.reason} {check.remedy}"
            expectation.severity = "critical" if check.severity == "error" else "warning"
        asset = self.source.add_dataframe_asset(name)
        suite = self.context.suites.add(gx.ExpectationSuite(name, [check.expectation for check in checks]))
        definition = self.context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=asset.add_batch_definition_whole_dataframe("all"), suite=suite)
        )
        result = definition.run(
            batch_parameters={"dataframe": table},
            result_format={
                "result_format": "COMPLETE",
                "unexpected_index_column_names": ["sample_id"],
                "return_unexpected_index_query": False,
            },
        )
        rows: dict[str, dict[Any, Any]] = {row["sample_id"]: row for row in table.to_dict("records")}
        found = []
        for one in sorted(result.results, key=lambda one: one.expectation_config.meta["position"]):
            check = checks[one.expectation_config.meta["position"]]
            if one.success:
                continue
            if not one.result:  # the expectation itself failed to run
                raise RuntimeError(f"{check.name}: {one.exception_info}")
            samples = [row["sample_id"] for row in one.result["unexpected_index_list"]]
            details = [check.tells.format_map(rows[sample]) for sample in samples]
            beside = [rows[sample][check.beside] for sample in samples] if check.beside else []
            found.append(Finding(check.name, check.severity, check.reason, check.remedy, samples, details, beside))
        return found


def _faulty(findings: list[Finding]) -> dict[str, str]:
    """Sample id -> every error of the pair, in the order of the contract."""
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        if finding.severity == "error":
            for sample, detail in zip(finding.samples, finding.details, strict=True):
                reasons.setdefault(sample, []).append(f"not met: {finding.expectation}: {detail}")
    return {sample: "; ".join(reasons[sample]) for sample in sorted(reasons)}


def _over_the_limit(frame: pd.DataFrame, card: Card, faulty: Mapping[str, str]) -> list[str]:
    """A line for every split with more faulty pairs than the card lets us leave out."""
    lines = []
    for split, folder in sorted(card.splits.items()):
        samples = frame["sample_id"][frame["split"] == split]
        count, limit = int(samples.isin(faulty).sum()), int(card.max_faulty * len(samples) + 1e-9)
        if count > limit:
            lines.append(
                f"{split} ({folder}): {count} of {len(samples)} pairs are faulty, and {limit} may be left out "
                f"(`max_faulty: {card.max_faulty:g}` in data/{card.name}/dataset.yaml); mend them, or raise the limit"
            )
    return lines


def validate(
    frame: pd.DataFrame, card: Card, accepted: Mapping[str, Any] | None = None, docs: Path | None = None
) -> Report:
    """Hold an index to the contract. `accepted` is the `facts.summary` of the last accepted version.

    Pairs with errors are quarantined, and the splits held to it without them; unless they are more than the card
    allows, which stops everything. `docs` is a folder for Great Expectations' Data Docs.
    """
    expectations = _Expectations()
    of_pairs = expectations.findings("pairs", pair_facts(frame, card), pair_checks(card))
    faulty = _faulty(of_pairs)
    over = _over_the_limit(frame, card, faulty)
    left = frame if over else frame[~frame["sample_id"].isin(faulty)]
    of_splits = expectations.findings("splits", split_facts(left, card, accepted), split_checks(card))
    if docs is not None:
        expectations.write_docs(docs)
    stops = [f"{f.expectation}: {detail}" for f in of_splits if f.severity == "error" for detail in f.details]
    return Report(of_pairs + of_splits, faulty, over + [f"not met: {line}" for line in stops])


def describe(finding: Finding) -> list[str]:
    """A finding for the terminal: what is not met, how often and why that matters; the first files; what to do."""
    lines = [f"{finding.severity}: not met: {finding.expectation} ({finding.count}x). {finding.reason}"]
    lines += [f"    {detail}" for detail in finding.details[:SHOWN]]
    if finding.count > SHOWN:
        lines.append(f"    and {finding.count - SHOWN} more")
    return [*lines, f"  {finding.remedy}"]


def raise_on_errors(report: Report) -> None:
    """UserError where the dataset cannot be used: why, and every error."""
    if report.stops:
        errors = (line for finding in report.of("error") for line in describe(finding))
        raise UserError("\n".join(["the raw pairs cannot be trained on", *report.stops, *errors]))
