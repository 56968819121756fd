"""Trainings that are killed, cut off, changed, or run out of something."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from chaos.faults import NotHereError, Outcome, expect, fault
from chaos.lab import Lab, Project, interrupt, kill, same_weights, tree, until

EQUAL = "weights equal to those of an uninterrupted run, bit for bit"


@fault(1, "a training worker is killed", "the workers restart from the newest checkpoint, in the same MLflow run")
def worker_killed(lab: Lab) -> Outcome:
    with lab.project("worker") as project:
        training = project.train()
        expect(len(training.workers()) == 2, "two workers train")
        kill(training.workers()[:1])
        lost = project.lost
        training.wait()
        same_weights(project, lab)
        expect([status for _, status in project.runs] == ["FINISHED"], f"one finished MLflow run: {project.runs}")
        expect(project.json("build/train.json")["restarts"] == 1, "one restart is recorded")
        return Outcome(f"restarted by itself; {EQUAL}", lost)


@fault(3, "the driver is killed", "run again, it resumes in the same MLflow run")
def driver_killed(lab: Lab) -> Outcome:
    with lab.project("driver") as project:
        lost = project.killed()
        project.run("dpgan", "train")
        same_weights(project, lab)
        expect([status for _, status in project.runs] == ["FINISHED"], f"one finished MLflow run: {project.runs}")
        return Outcome(f"resumed by the same command; {EQUAL}", lost)


@fault(4, "SIGTERM, SIGINT", "a checkpoint within the grace time, no process left, MLflow: KILLED")
def asked_to_stop(lab: Lab) -> Outcome:
    with lab.project("stopped") as project:
        for number in (signal.SIGTERM, signal.SIGINT):
            training = project.train()
            seen = project.logged
            interrupt(training, number)
            training.wait(128 + number)
            expect(project.newest >= seen, f"a checkpoint of what was trained: {project.newest}, seen {seen}")
            expect([status for _, status in project.runs] == ["KILLED"], f"the MLflow run is {project.runs}")
            until(lambda: not project.processes(), f"every process ended, not {project.processes()}", 60)
        project.run("dpgan", "train")
        same_weights(project, lab)
        return Outcome(f"stopped behind a checkpoint, twice; resumed; {EQUAL}")


@fault(5, "killed in the middle of writing a checkpoint", "the half one is never loaded, and swept later")
def killed_while_writing(lab: Lab) -> Outcome:
    with lab.project("writing") as project:
        training = project.train()
        half: list[Path] = []

        def writes() -> bool:
            half[:] = project.root.glob("runs/*/checkpoints/.images_*")
            return bool(half)

        training.until(writes, "the next checkpoint being written")
        kill(tree(training.process.pid))
        lost = project.lost
        output = project.run("dpgan", "train")
        expect(not list(project.root.glob("runs/**/.images_*")), f"the half one is still there: {output[-500:]}")
        same_weights(project, lab)
        return Outcome(f"resumed from the checkpoint before it; {EQUAL}", lost)


@fault(6, "a checkpoint's bytes change", "another hash: back to the checkpoint before it, loudly")
def altered_checkpoint(lab: Lab) -> Outcome:
    with lab.project("altered") as project:
        project.killed()
        project.killed()
        newest = project.newest
        file = project.checkpoints[newest] / "generator.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        expect(len(project.checkpoints) > 1, "there is an older checkpoint")
        older = sorted(project.checkpoints)[-2]
        output = project.run("dpgan", "train")
        expect("is damaged (generator.safetensors" in output, f"it does not say so: {output[-2000:]}")
        same_weights(project, lab)
        return Outcome(f"named as damaged; resumed from the one before; {EQUAL}", newest - older)


@fault(7, "the disk is full", "the last good checkpoint stays; a sentence; run again, it resumes")
def disk_full(lab: Lab) -> Outcome:
    with lab.project("disk") as project:
        runs = project.root / "runs"
        runs.mkdir(exist_ok=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(runs)], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            raise NotHereError(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
        try:
            training = project.train()
            ballast = runs / "ballast"
            with ballast.open("wb") as file:
                while True:
                    try:
                        file.write(bytes(65536))
                        file.flush()
                    except OSError:
                        break
            output = training.wait(2)
            expect("make room" in output, f"it does not say what to do: {output[-2000:]}")
            expect(project.newest, "no checkpoint is left")
            lost = project.lost
            ballast.unlink(missing_ok=True)
            project.run("dpgan", "train")
            same_weights(project, lab)
        finally:
            subprocess.run(["umount", "-l", str(runs)], check=False)
        return Outcome(f"stopped with a sentence; resumed when there was room; {EQUAL}", lost)


@fault(8, "the losses become NaN", "the workers agree, skip, go back once, then fail and name the samples")
def not_finite(lab: Lab) -> Outcome:
    with lab.project("nan") as project:
        project.edit("params.yaml", "train: {images: 48,", "train: {images: 48, lr_generator: 1.0e+30,")
        output = project.run("dpgan", "train", code=2)
        expect("train/" in output, f"no sample is named: {output[-2000:]}")
        expect(not (project.root / "build/train").exists(), "nothing that could be promoted is left")
        return Outcome("failed with the names of the step's samples; nothing to promote")


@fault(10, "a worker hangs", "a time-out, the stacks of those that wait, and a restart")
def hanging_worker(lab: Lab) -> Outcome:
    with lab.project("hang10") as project:
        project.edit("params.yaml", "run: {workers: 2,", "run: {workers: 2, hang_s: 20,")
        training = project.train()
        training.workers()[0].suspend()
        lost = project.lost
        output = training.wait()
        expect("made no progress" in output and "in _step" in output, f"no stack: {output[-2000:]}")
        same_weights(project, lab)
        return Outcome(f"restarted after {20} s, with the stack of the worker that waited; {EQUAL}", lost)


@fault(22, "resumed with another number of workers", "the same batches: losses and weights differ by rounding only")
def other_workers(lab: Lab) -> Outcome:
    with lab.project("workers") as project:
        lost = project.killed()
        project.edit("params.yaml", "workers: 2", "workers: 1")
        project.run("dpgan", "train")
        before, after = (_losses(p) for p in (lab.finished, project))
        expect(before.keys() == after.keys(), f"logged at {sorted(before)} and {sorted(after)}")
        worst = max(abs(after[step] - value) / abs(value) for step, value in before.items())
        expect(worst < 0.02, f"the discriminator's loss differs by {worst:.1%}")
        return Outcome(f"resumed on one worker; the discriminator's losses within {worst:.2%}", lost)


def _losses(project: Project) -> dict[int, float]:
    rows = project.rows("select step, value from metrics where key = 'loss/D_total' order by timestamp")
    return {int(step): float(value) for step, value in rows}


@fault(23, "resumed under changed settings", "another run; the old one stays and is named")
def changed_settings(lab: Lab) -> Outcome:
    with lab.project("settings") as project:
        project.killed()
        before = project.newest
        (old,) = project.root.glob("runs/toyscapes-*")
        project.edit("params.yaml", "train: {images: 48,", "train: {images: 48, ema: 0.5,")
        output = project.run("dpgan", "train")
        expect("settings.ema" in output and "fork" in output, f"it does not say what changed: {output[:2000]}")
        expect((old / "checkpoints" / f"images_{before:09d}").is_dir(), "the old checkpoints are gone")
        expect(len(project.runs) == 2, "two MLflow runs")
        return Outcome("trained anew; named the interrupted run and how to continue it")


@fault(28, "the code changed between two starts", "said with both commits; refused if networks, losses or step changed")
def changed_code(lab: Lab) -> Outcome:
    with lab.project("code") as project:
        project.killed()
        losses = project.root / "dpgan/losses.py"
        losses.write_text(losses.read_text() + "\n\nCHANGED = True\n")
        project.git("commit", "-qam", "another loss")
        output = project.run("dpgan", "train", code=2)
        expect("losses" in output or "code" in output, f"the reason is missing: {output[-1500:]}")
        project.git("reset", "-q", "--hard", "HEAD~1")
        readme = project.root / "dpgan/progress.py"
        readme.write_text(readme.read_text() + "\n# A comment.\n")
        project.git("commit", "-qam", "something else")
        output = project.run("dpgan", "train")
        expect(project.git("rev-parse", "--short=7", "HEAD")[:7] in output, f"the commit is not named: {output[:1500]}")
        same_weights(project, lab)
        return Outcome(f"refused after a changed loss; other code resumed with both commits named; {EQUAL}")


@fault(16, "the same training is started twice", "the second one is refused and names the first")
def started_twice(lab: Lab) -> Outcome:
    with lab.project("twice") as project:
        training = project.train()
        output = project.run("dpgan", "train", code=None)
        expect("Traceback" not in output and str(training.process.pid) in output, f"the second said: {output[-1500:]}")
        training.wait()
        same_weights(project, lab)
        expect(len(project.runs) == 1, f"one MLflow run: {project.runs}")
        return Outcome(f"the second one was refused by a lock and named the first; {EQUAL}")


@fault(18, "`dvc repro` is interrupted, then killed", "run again, the stage resumes; no lock of DVC is in the way")
def repro_interrupted(lab: Lab) -> Outcome:
    with lab.project("repro") as project:
        for number in (signal.SIGINT, signal.SIGKILL):
            repro = project.train(("dvc", "repro", "train"))
            if number == signal.SIGKILL:
                kill(tree(repro.process.pid))
            else:
                interrupt(repro, number)
                expect("Traceback" not in repro.wait(None), "a traceback")
        project.run("dvc", "repro", "train")
        same_weights(project, lab)
        return Outcome(f"ctrl-c, then SIGKILL: resumed by `dvc repro`; {EQUAL}")


@fault(21, "a checkpoint that is a poisoned pickle", "refused; nothing in it runs")
def poisoned(lab: Lab) -> Outcome:
    import torch

    with lab.project("poison") as project:
        marker = project.root / "ran"
        torch.save(_Poison(str(marker)), project.root / "evil.pth")
        output = project.run("dpgan", "import-checkpoint", "evil.pth", "--out", "ours.safetensors", code=2)
        expect(not marker.exists(), "the pickle ran")
        expect(not (project.root / "ours.safetensors").exists(), "a file was written")
        return Outcome(f"refused: {output.strip().splitlines()[-1][:90]}...")


class _Poison:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


@fault(24, "weights of a judge are missing or changed", "refused by checksum: no score changes its meaning")
def judge_changed(lab: Lab) -> Outcome:
    with lab.project("judge") as project:
        weights = project.root / "drn.pth"
        weights.write_bytes(b"not what was published")
        judge = "judge: {kind: drn105, weights: drn.pth, sha256: [abcdef0123456789]}"
        project.edit("params.yaml", "judge: {images: 64, batch: 8}", judge)
        output = project.run("dpgan", "judge", code=2)
        expect("sha256" in output, f"the checksum is not named: {output[-1000:]}")
        weights.unlink()
        output = project.run("dpgan", "judge", code=2)
        expect("drn.pth" in output, f"the missing file is not named: {output[-1000:]}")
        return Outcome("refused: another sha256, and a missing file by its name")
