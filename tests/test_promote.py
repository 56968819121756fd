"""Registering, refusing, promoting, rolling back; with a real registry."""

import itertools
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from registry_project import BETTER, GOOD, MODEL, OTHER, PROTOCOL, Project, content, evaluation, interrupting, never

from dpgan.errors import UserError
from dpgan.registry import packaging, records, versions
from dpgan.registry import promote as module
from dpgan.registry.gate import Evaluation
from dpgan.registry.packaging import Package, register
from dpgan.registry.promote import champion_version, promote, promote_by_hand, rollback
from dpgan.registry.records import evaluation_of, recorded
from dpgan.registry.versions import MovedError, Standing, Versions


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def test_promoted_refused_held_back_approved_and_rolled_back(project: Project) -> None:
    first = project.promote(1, GOOD)
    assert (first.version, first.champion, first.outcome, first.standing) == (1, 1, "promoted", False)
    assert project.versions.aliases() == {"champion": 1}
    again = project.promote(1, GOOD)
    assert (again.version, again.champion, again.standing) == (1, 1, True)
    assert again.reasons == first.reasons
    assert project.count() == 1

    refused = project.promote(2, evaluation(fid=99.5))
    assert (refused.version, refused.champion, refused.outcome) == (2, 1, "refused")
    assert project.tags(2)["verdict"] == "refused"
    assert json.loads(project.tags(2)["reasons"]) == list(refused.reasons)
    assert "cannot be told from the champion's" in refused.reasons[0]
    assert "**The gate's verdict: refused**" in project.versions.get(2).description
    assert project.versions.aliases() == {"champion": 1, "challenger": 2}

    held = project.promote(3, BETTER, approval=True)
    assert (held.version, held.champion, held.outcome) == (3, 1, "awaits approval")
    assert project.versions.aliases() == {"champion": 1, "challenger": 3}
    assert promote_by_hand(project.root, "toyscapes", "challenger", "looked at 50 pictures") == 3
    assert project.versions.aliases() == {"champion": 3, "previous": 1}
    tags = project.tags(3)
    assert tags["verdict"] == "awaits approval"
    assert tags["approval.reason"] == "looked at 50 pictures"
    assert tags["approval.by"]
    promote_by_hand(project.root, "toyscapes", "3", "again")  # it stands already
    assert project.tags(3) == tags
    assert project.promote(3, BETTER, approval=True).standing

    assert rollback(project.root, "toyscapes") == 1
    assert project.versions.aliases() == {"champion": 1, "previous": 3}
    back = project.promote(3, BETTER)  # it would beat version 1 again, and somebody did not want it
    assert back.outcome == "refused"
    assert "was rolled back" in back.reasons[0]
    assert rollback(project.root, "toyscapes") == 3
    assert project.versions.aliases() == {"champion": 3, "previous": 1}
    assert "rolled_back" not in project.tags(3)


def test_what_was_held_back_is_crowned_where_approval_is_no_longer_asked(project: Project) -> None:
    assert project.promote(1, GOOD, approval=True).outcome == "awaits approval"
    assert champion_version(project.root, "toyscapes") is None
    done = project.promote(1, GOOD)
    assert (done.version, done.outcome, done.champion) == (1, "promoted", 1)
    assert project.versions.aliases() == {"champion": 1}


def test_a_champion_of_another_protocol_is_scored_again_once(project: Project) -> None:
    project.promote(1, GOOD)
    seen = []

    def rescore(package: Package) -> Evaluation:
        seen.append(package.digest)
        return evaluation(fid=50, protocol=OTHER)

    refused = project.promote(2, replace(BETTER, protocol=OTHER), rescore)
    assert refused.reasons[0].startswith("fid_lite0 80 is worse than the champion's 50")
    assert seen == [content(1).digest]
    project.promote(3, replace(BETTER, protocol=OTHER), never)  # its scores under it are kept
    assert project.promote(4, BETTER, never).outcome == "promoted"  # and so are the first ones
    kept = evaluation_of(project.versions, 1, replace(GOOD, protocol=OTHER).key)
    assert kept is not None
    assert kept.scores["fid_lite0"].value == 50
    assert (kept.scores["fid_lite0"].parts == evaluation(fid=50).scores["fid_lite0"].parts).all()


def test_fewer_evaluated_classes_score_the_champion_again(project: Project) -> None:
    """Before, protocols were equal, and every candidate lacked the score of the class for ever."""
    project.promote(1, GOOD)
    roads = {**PROTOCOL, "evaluated": [[0, "road"]]}
    candidate = evaluation(fid=80, classes={"road": 90.0}, protocol=roads)
    again = evaluation(classes={"road": 90.0}, protocol=roads)
    assert project.promote(2, candidate, lambda _: again).outcome == "promoted"


def test_scores_that_are_gone_or_altered_are_not_used(project: Project) -> None:
    project.promote(1, GOOD)
    (brief,) = recorded(project.versions.get(1)).values()
    file = next(project.root.rglob(Path(brief.artifact).name))
    whole = file.read_bytes()
    file.write_bytes(whole[:-8] + bytes(8))
    for fault in ("was altered", "is gone"):
        with pytest.raises(UserError, match=rf"version 1: scores/.* {fault} in file://.*; .*delete .*tag scores\."):
            project.promote(2, BETTER)
        file.unlink(missing_ok=True)
    file.write_bytes(whole)
    assert project.promote(2, BETTER).outcome == "promoted"


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """What is done inside dies before its writing call to the registry number `at`."""
    client = interrupting(at)
    with monkeypatch.context() as patch:
        for part in (module, packaging, versions):
            patch.setattr(part, "MlflowClient", client)
        yield


def test_killed_while_registering_it_is_registered_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(1, 7):  # the model, the logged model, its files, its tag, its run's output, the version
        with killed(monkeypatch, at), pytest.raises(KeyboardInterrupt):
            project.promote(1, GOOD)
        assert project.versions.aliases() == {}
        assert project.count() == 0
    assert project.promote(1, GOOD).champion == 1
    assert project.count() == 1


def _points(
    project: Project, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[], None], act: Callable[[], object]
) -> Iterator[dict[str, int]]:
    """The aliases at every point where `act` can be killed; then it is run again."""
    for at in range(1, 40):
        prepare()
        with killed(monkeypatch, at):
            try:
                act()
            except KeyboardInterrupt:
                died = True
            else:
                died = False
        if not died:
            assert at > 4, "there must be something to interrupt"
            return
        aliases = project.versions.aliases()
        act()
        yield aliases
    raise AssertionError("it never came to its end")


def _reset(project: Project, aliases: dict[str, int]) -> None:
    """Version 2 as if it had just been registered."""
    for name in project.versions.aliases():
        project.client.delete_registered_model_alias(MODEL, name)
    for name, number in aliases.items():
        project.client.set_registered_model_alias(MODEL, name, str(number))
    for key in project.tags(2).keys() - {"digest", "receipt_sha256"}:
        project.client.delete_model_version_tag(MODEL, "2", key)
    project.client.update_model_version(MODEL, "2", "")


def test_killed_between_any_two_calls_no_version_is_half_a_champion(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.promote(1, GOOD)
    register(project.versions.uri, MODEL, project.run, content(2))

    def prepare() -> None:
        _reset(project, {"champion": 1, "challenger": 2})

    seen = []
    for aliases in _points(project, monkeypatch, prepare, lambda: project.promote(2, BETTER)):
        assert project.versions.aliases() == {"champion": 2, "previous": 1}, "run again, it is whole"
        seen.append(aliases["champion"])
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}, "killed before the crowning, and after it"


def test_a_champion_has_verdict_scores_and_card_at_every_moment(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.promote(1, GOOD)
    register(project.versions.uri, MODEL, project.run, content(2))
    for at in range(1, 40):
        _reset(project, {"champion": 1})
        try:
            with killed(monkeypatch, at):
                project.promote(2, BETTER)
        except KeyboardInterrupt:
            pass
        else:
            break
        champion = project.versions.get(project.versions.aliases()["champion"])
        assert champion.tags["verdict"] == "promoted"
        assert champion.tags["reasons"]
        assert "## Scores" in champion.description
        assert evaluation_of(project.versions, int(champion.version), GOOD.key) is not None
        with project.versions.one_at_a_time():  # any command ends what was begun
            pass
        aliases = project.versions.aliases()
        assert aliases in ({"champion": 1}, {"champion": 2, "previous": 1})
        assert (project.tags(2).get("verdict") == "promoted") == (aliases["champion"] == 2)


@pytest.mark.parametrize("how", ["refused", "by hand", "rollback"])
def test_killed_between_any_two_calls_and_run_again(
    project: Project, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    project.promote(1, GOOD)
    register(project.versions.uri, MODEL, project.run, content(2))
    root = project.root
    before, act, after = {
        "refused": ({"champion": 1}, lambda: project.promote(2, GOOD), {"champion": 1, "challenger": 2}),
        "by hand": ({"champion": 1, "challenger": 2}, lambda: promote_by_hand(root, "toyscapes", "2", "I say so"),
                    {"champion": 2, "previous": 1}),
        "rollback": ({"champion": 2, "previous": 1}, lambda: rollback(root, "toyscapes"),
                     {"champion": 1, "previous": 2}),
    }[how]  # fmt: skip
    for aliases in _points(project, monkeypatch, lambda: _reset(project, before), act):
        assert aliases["champion"] in (before["champion"], after["champion"])
        assert project.versions.aliases() == after
        if how == "by hand":
            assert project.tags(2)["approval.reason"] == "I say so"
        if how == "rollback":
            assert "rolled_back" in project.tags(2)


def test_a_champion_moved_from_another_machine_is_not_overwritten(project: Project) -> None:
    project.promote(1, GOOD)
    project.promote(2, evaluation(fid=150))

    def someone_else(package: Package) -> Evaluation:  # acts between reading the champion and the alias
        project.client.set_registered_model_alias(MODEL, "champion", "2")
        return replace(GOOD, protocol=OTHER)

    with pytest.raises(UserError, match="another promotion moved the champion"):
        project.promote(3, replace(BETTER, protocol=OTHER), someone_else)
    assert project.versions.aliases() == {"champion": 2, "challenger": 2}
    assert "verdict" not in project.tags(3)


class Machine(threading.Thread):
    """A machine that moves the champion, one writing call to the registry at a time."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.act, self.moved = act, False
        self.waits, self.goes = threading.Semaphore(0), threading.Semaphore(0)
        self.start()
        self.waits.acquire()

    def run(self) -> None:
        self.before_a_call()
        try:
            self.act()
        except MovedError:
            self.moved = True
        finally:
            self.over = True
            self.waits.release()

    over = False

    def before_a_call(self) -> None:
        self.waits.release()
        self.goes.acquire()

    def calls(self, count: int) -> None:
        """Lets it make so many calls, or come to its end."""
        for _ in range(count):
            if self.over:
                return
            self.goes.release()
            self.waits.acquire()


class Stepping(MlflowClient):
    """A client of a Machine."""

    def __getattribute__(self, name: str) -> Any:
        machine = threading.current_thread()
        if isinstance(machine, Machine) and name.startswith(("set_", "delete_", "log_")):
            machine.before_a_call()
        return super().__getattribute__(name)


def test_of_moves_on_two_machines_each_verdict_is_true(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stops before any of its calls, B before any of its own, then A goes first: in every combination."""
    for number in (1, 2, 3):
        register(project.versions.uri, MODEL, project.run, content(number))
    monkeypatch.setattr(versions, "MlflowClient", Stepping)
    outcomes = set()
    for first, second in itertools.product(range(6), range(1, 7)):
        for number in (2, 3):
            project.versions.tag(number, {"verdict": None})
        for name, number in {"champion": 1, "previous": 1}.items():
            project.client.set_registered_model_alias(MODEL, name, str(number))
        before = project.versions.standing()  # both decide on it

        def crown(number: int, before: Standing = before) -> Callable[[], None]:
            aliases = {"previous": 1, "champion": number}
            return lambda: project.versions.move("promote", before, aliases, {number: {"verdict": "promoted"}})

        a, b = Machine(crown(2)), Machine(crown(3))
        a.calls(first)
        b.calls(second)
        a.calls(100)
        b.calls(100)
        winner, loser = (3, 2) if a.moved else (2, 3)
        assert (a.moved, b.moved) == (winner == 3, winner == 2), (first, second)
        assert project.versions.aliases() == {"champion": winner, "previous": 1}, (first, second)
        assert project.tags(winner)["verdict"] == "promoted"
        assert "verdict" not in project.tags(loser), (first, second)
        assert project.versions.standing().moves == before.moves + 1
        outcomes.add(winner)
    assert outcomes == {2, 3}


def test_a_slow_machine_does_not_undo_a_later_move(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        register(project.versions.uri, MODEL, project.run, content(number))
    monkeypatch.setattr(versions, "MlflowClient", Stepping)
    for calls in range(2, 7):  # A has claimed its move
        for name, number in {"champion": 1, "previous": 1}.items():
            project.client.set_registered_model_alias(MODEL, name, str(number))
        before = project.versions.standing()
        a = Machine(partial(project.versions.move, "promote", before, {"previous": 1, "champion": 2}, {}))
        a.calls(calls)
        promote_by_hand(project.root, "toyscapes", "3", "on another machine")  # ends A's move first
        a.calls(100)
        assert not a.moved
        assert project.versions.aliases() == {"champion": 3, "previous": 2}
        assert project.versions.standing().moves == before.moves + 2


def test_the_loser_of_two_promotions_has_no_verdict(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.promote(1, GOOD)
    monkeypatch.setattr(versions, "MlflowClient", Stepping)
    # Two machines: each has a lock of its own.
    monkeypatch.setattr(Versions, "_lock_path", lambda _: project.root / f"{threading.current_thread().name}.lock")
    b = Machine(partial(project.promote, 3, evaluation(fid=60)))
    while "reasons" not in (project.tags(2) if project.count() > 1 else {}):  # B has decided
        b.calls(1)
    assert project.promote(2, evaluation(fid=85)).outcome == "promoted"
    b.calls(100)
    assert b.moved
    assert project.versions.aliases() == {"champion": 3, "previous": 1}
    assert not {"verdict", "reasons"} & project.tags(2).keys()
    assert not project.versions.get(2).description
    assert project.promote(3, evaluation(fid=60)).champion == 2, "run again, it is compared with the new champion"


def _in_a_process(root: Path, run: str, seed: int, scores: Evaluation) -> None:
    os.chdir(root)
    project = Project.__new__(Project)
    project.root, project.run = root, run
    promote(root, project.candidate(seed, scores), module.GateSettings(), never)


def test_of_two_promotions_at_once_the_better_one_stays(project: Project) -> None:
    context = multiprocessing.get_context("spawn")
    both = [
        context.Process(target=_in_a_process, args=(project.root, project.run, seed, scores))
        for seed, scores in ((1, GOOD), (2, BETTER))
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
        assert process.exitcode == 0
    champion = champion_version(project.root, "toyscapes")
    assert champion is not None
    (brief,) = recorded(project.versions.get(champion)).values()
    assert brief.main["fid_lite0"] == 80
    assert project.count() == 2


def test_there_is_no_way_back_without_a_previous_champion(project: Project) -> None:
    project.promote(1, GOOD)
    with pytest.raises(UserError, match="no previous champion"):
        rollback(project.root, "toyscapes")
    for reason in (" ", "x" * 1001):
        with pytest.raises(UserError, match="say in 1 to 1000 characters why"):
            promote_by_hand(project.root, "toyscapes", "1", reason)
    with pytest.raises(UserError, match=r"unknown version '7'.*known: 1, champion"):
        promote_by_hand(project.root, "toyscapes", "7", "I say so")
    assert records.decision(project.versions.get(1)) == "promoted"


def test_a_run_that_the_store_does_not_know_is_refused(project: Project) -> None:
    """As after `rm -r mlruns`: DVC still has the weights, the registry has nothing."""
    assert champion_version(project.root / "elsewhere", "toyscapes") is None
    assert not (project.root / "elsewhere").exists()
    project.run = "0" * 32
    with pytest.raises(UserError, match="dvc repro -f train"):
        project.promote(1, GOOD)
    assert project.count() == 0
