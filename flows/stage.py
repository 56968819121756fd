"""One command of a stage: run under flows/child.py, logged line by line, judged by what it recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpgan.data.versions import remote_elsewhere
from dpgan.errors import TemporaryError, UserError, without_logins
from dpgan.progress import RECORDS
from flows.workspace import Workspace, at_work

Record = Mapping[str, Any]


def run(workspace: Workspace, command: list[str], log: Callable[[str], None], show: Callable[[Record], None]) -> None:
    """Run a command of the environment in the workspace: its lines go to `log`, its records (dpgan.progress) to `show`.

    UserError with what it recorded about its failure, or with its last lines; TemporaryError if that may pass.
    """
    failure: Record | None = None
    tail: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dpgan-") as folder:
        records = _Records(Path(folder) / "records")
        command_line = [sys.executable, str(Path(__file__).with_name("child.py")),
                        str(workspace.params.run.grace_s), sys.executable, "-m", *command]  # fmt: skip
        environment = {**workspace.environment(), RECORDS: str(records.path),
                       "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
        with subprocess.Popen(
            command_line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True, env=environment,
            pass_fds=[workspace.lock],  # the workspace is taken until the whole tree has ended
        ) as process:  # fmt: skip
            try:
                for line in process.stdout or ():
                    for record in records.new():  # a stage records first and prints then
                        failure = _take(record, failure, show)
                    if line.strip():
                        log(without_logins(line.rstrip()))
                        tail = [*tail[-4:], line.strip()]
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait()  # it ends by itself, whatever it has to kill for that
                raise
        for record in records.new():
            failure = _take(record, failure, show)
    if code:
        words = " ".join(command)
        said = f"{words} ended with code {code}: {' | '.join(tail)}"
        raise judge(failure, said, remote=command[:2] == ["dvc", "pull"] and remote_elsewhere(workspace.root),
                    busy=at_work(workspace.root) is not None)  # fmt: skip


def judge(failure: Record | None, said: str, *, remote: bool, busy: bool) -> UserError:
    """The error of a command that failed. Its kind decides whether it is tried again, never its words.

    failure: what the stage recorded, if it came so far. said: the end of the command's output. remote: it talks to
    another machine. busy: somebody else's git or DVC works in the workspace, and so holds DVC's locks.
    """
    if failure is not None:
        passes, said = failure["exit_code"] == TemporaryError.exit_code, failure["message"]
    else:
        passes = remote or busy
    return TemporaryError(said) if passes else UserError(said)


def _take(record: Record, failure: Record | None, show: Callable[[Record], None]) -> Record | None:
    """The newest record of a failure; others are shown."""
    if record["kind"] == "failure":
        return record
    show(record)
    return failure


class _Records:
    """Lines of JSON that a stage appends to a file, read while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch(mode=0o600)
        self._read = 0

    def new(self) -> Iterator[Record]:
        """Those that are whole and have not been read yet."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")
        self._read += len(whole[0]) + len(whole[1])
        yield from (json.loads(line) for line in whole[0].splitlines())
