"""The command line: `dpgan <stage>`, one command a stage of dvc.yaml, and a few beside them."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from dpgan import champions, datasets, experiments, scoring, stages
from dpgan.environment import quiet_environment
from dpgan.errors import Stopped, TemporaryError, UserError, of_system, without_logins
from dpgan.imports import import_checkpoint
from dpgan.progress import record
from dpgan.settings import unknown_name

STAGES = {
    stage.__name__: stage
    for stage in (
        stages.index,
        stages.validate,
        stages.prepare,
        stages.judge,
        stages.train,
        stages.evaluate,
        stages.promote,
        stages.render,
        stages.summary,
    )
}
DATA_COMMANDS = ["add", "check", "diff", "accept"]
REGISTRY_COMMANDS = ["list", "promote", "rollback", "compare"]
COMMANDS = [*STAGES, "data", "registry", "tables", "ui", "import-checkpoint"]
MESSAGE = 4000  # characters of an error that are recorded: a line is written in one piece
PORT_HELP = "port of the MLflow UI on this machine"


def open_ui(port: int) -> None:
    """Serve the MLflow UI over the project's own store; replaces this process."""
    from dpgan.registry.store import usable_store

    uri = usable_store(Path.cwd())
    if uri.startswith("http"):
        raise UserError(f"MLFLOW_TRACKING_URI={uri} is a server with a UI of its own: open that address in a browser")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port {port} of 127.0.0.1: {error.strerror}; choose another: dpgan ui --port N") from None
    print(f"MLflow UI: http://127.0.0.1:{port}  (ctrl-c ends it)", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri,
                              "--host", "127.0.0.1", "--port", str(port)])  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dpgan", description="Train DP-GAN: label maps in, photos out.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, stage in STAGES.items():
        command = commands.add_parser(name, help=(stage.__doc__ or "").split("\n")[0])
        if name == "evaluate":
            _score_arguments(command)
    ui = commands.add_parser("ui", help="Serve the MLflow UI.")
    ui.add_argument("--port", type=int, default=5000, help=PORT_HELP)
    load = commands.add_parser("import-checkpoint", help=(import_checkpoint.__doc__ or "").split("\n")[0])
    load.add_argument("file", type=Path, help="state dict of a generator or discriminator: .pth, .safetensors")
    load.add_argument("--out", type=Path, help="save it as ours: a .safetensors file")
    load.add_argument("--register", action="store_true", help="register it for the dataset of params.yaml")
    tables = commands.add_parser("tables", help=(experiments.tables.__doc__ or "").split("\n")[0])
    tables.add_argument("--preset", help="only runs of this preset")
    tables.add_argument("--commands", action="store_true", help="instead, the commands that run what is missing")
    _data_parser(commands.add_parser("data", help="Datasets: add your own, check any."))
    _registry_parser(commands.add_parser("registry", help="Registered versions: list, compare, promote, roll back."))
    return parser


def _score_arguments(command: argparse.ArgumentParser) -> None:
    """Of `evaluate`, which without any is the stage."""
    command.description = (
        "Without arguments: the stage, which scores what was trained. With a model or --images: "
        f"{(scoring.score.__doc__ or '').strip()}"
    )
    command.add_argument(
        "model", nargs="?",
        help="models:/NAME/VERSION or NAME@ALIAS of the registry, build/train, a checkpoint below runs/, or a file: "
        "an official state dict, or what import-checkpoint saved",
    )  # fmt: skip
    command.add_argument("--images", type=Path, metavar="FOLDER", help="score images instead, one a label map")
    command.add_argument("--dataset", help="on whose validation split; default: that of params.yaml")
    command.add_argument("--raw", type=Path, metavar="FOLDER", help="of the dataset; default: data/DATASET/raw")
    command.add_argument("--against", metavar="MODEL", help="compare with it, on the same label maps and noise seeds")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="for report and numbers; default: build/scored/...")


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


def _data_parser(data: argparse.ArgumentParser) -> None:
    commands = data.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    add = commands.add_parser("add", help=(datasets.add.__doc__ or "").split("\n")[0])
    add.add_argument("name", help="of the dataset: its folder in data/")
    add.add_argument("folder", type=Path, help="photos and label maps, in any common layout")
    add.add_argument("--no-copy", action="store_true", help="leave the files where they are, unversioned")
    check = commands.add_parser("check", help=(datasets.check.__doc__ or "").split("\n")[0])
    check.add_argument("which", metavar="NAME|FOLDER", help="a dataset of data/, or any folder of pairs")
    check.add_argument("--report", type=Path, metavar="FOLDER", help="where the report goes; default: build/check/NAME")
    diff = commands.add_parser("diff", help=(datasets.diff.__doc__ or "").split("\n")[0])
    diff.add_argument("before", nargs="?", default="HEAD", help="git revision, or file of an index; default: HEAD")
    diff.add_argument("after", nargs="?", help="the same; default: the index in build/")
    commands.add_parser("accept", help=(datasets.accept.__doc__ or "").split("\n")[0])


def _run_data(given: argparse.Namespace) -> int:
    if given.data_command == "add":
        return datasets.add(given.name, given.folder, copy=not given.no_copy)
    if given.data_command == "diff":
        return datasets.diff(given.before, given.after)
    if given.data_command == "accept":
        return datasets.accept()
    return datasets.check(given.which, given.report)


def _registry_parser(registry: argparse.ArgumentParser) -> None:
    commands = registry.add_subparsers(dest="registry_command", metavar="COMMAND", required=True)
    commands.add_parser("list", help=(champions.list_versions.__doc__ or "").split("\n")[0])
    promote = commands.add_parser("promote", help=(champions.promote.__doc__ or "").split("\n")[0])
    promote.add_argument("version", help="a number or an alias, such as challenger")
    promote.add_argument("--reason", required=True, metavar="TEXT", help="why; it is kept on the version")
    commands.add_parser("rollback", help=(champions.rollback.__doc__ or "").split("\n")[0])
    compare = commands.add_parser("compare", help=(champions.compare.__doc__ or "").split("\n")[0])
    compare.add_argument("ours", metavar="A", help="a number or an alias")
    compare.add_argument("theirs", metavar="B", help="another one")
    compare.add_argument("--score", action="store_true", help="score them where they have no scores in common")


def _run_registry(given: argparse.Namespace) -> None:
    if given.registry_command == "list":
        champions.list_versions()
    elif given.registry_command == "promote":
        champions.promote(given.version, given.reason)
    elif given.registry_command == "rollback":
        champions.rollback()
    else:
        champions.compare(given.ours, given.theirs, given.score)


def _known(word: Sequence[str], commands: Sequence[str], kind: str, where: str) -> None:
    """UserError with the nearest command where the first word is none."""
    if word and not word[0].startswith("-") and word[0] not in commands:
        raise unknown_name(kind, word[0], commands, where=where)


def _run(arguments: Sequence[str]) -> int:
    _known(arguments, COMMANDS, "stage", "dpgan")
    if arguments[:1] == ["data"]:
        _known(arguments[1:], DATA_COMMANDS, "command", "dpgan data")
    if arguments[:1] == ["registry"]:
        _known(arguments[1:], REGISTRY_COMMANDS, "command", "dpgan registry")
    given = _parser().parse_args(arguments)
    if given.command == "ui":
        open_ui(given.port)
    elif given.command == "import-checkpoint":
        import_checkpoint(given.file, given.out, given.register)
    elif given.command == "tables":
        experiments.tables(given.preset, given.commands)
    elif given.command == "evaluate" and len(arguments) > 1:
        scoring.score(given.model, given.images, given.dataset, given.raw, given.against, given.out)
    elif given.command == "registry":
        _run_registry(given)
    elif given.command == "data":
        return _run_data(given)
    else:
        STAGES[given.command]()
    return 0


def _explained(error: Exception) -> UserError | None:
    """The sentence for an error that is a user's, or that may pass; None for a bug, which keeps its traceback."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and (told := of_system(error)):
        return told
    from dpgan.registry.outage import may_pass  # MLflow is slow to import

    if may_pass(error):
        return TemporaryError(f"{type(error).__name__}: {error}; it may pass: run this again in a while")
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 a check failed, 2 a user's mistake, 75 what may pass when the command
    is run again (a service that is away, a lock that is taken), 130 or 143 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        quiet_environment()
        return _run(arguments)
    except KeyboardInterrupt as error:
        print(f"\n{arguments[0]} interrupted; run the same command again to go on", file=sys.stderr)
        return error.exit_code if isinstance(error, Stopped) else 130
    except BrokenPipeError:  # `| head` has read enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        explained = _explained(error)
        if explained is None:
            record("failure", exit_code=1, message=without_logins(f"{type(error).__name__}: {error}")[:MESSAGE])
            raise
        record("failure", exit_code=explained.exit_code, message=str(explained)[:MESSAGE])
        print(f"error: {explained}", file=sys.stderr)
        return explained.exit_code


if __name__ == "__main__":
    sys.exit(main())
