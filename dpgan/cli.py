"""The command line: `dpgan <stage>`, one command a stage of dvc.yaml, and a few beside them."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from dpgan import stages
from dpgan.config import quiet_environment
from dpgan.errors import Stopped, UserError
from dpgan.imports import import_checkpoint
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
COMMANDS = [*STAGES, "ui", "import-checkpoint"]
PORT_HELP = "port of the MLflow UI on this machine"


def open_ui(port: int) -> None:
    """Serve the MLflow UI over the project's own store; replaces this process."""
    from dpgan.registry.tracking import tracking_uri

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port {port} of 127.0.0.1: {error.strerror}; choose another: dpgan ui --port N") from None
    uri = tracking_uri(Path.cwd())
    print(f"MLflow UI: http://127.0.0.1:{port}  (ctrl-c ends it)", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri,
                              "--host", "127.0.0.1", "--port", str(port)])  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dpgan", description="Train DP-GAN: label maps in, photos out.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, stage in STAGES.items():
        commands.add_parser(name, help=(stage.__doc__ or "").split("\n")[0])
    ui = commands.add_parser("ui", help="Serve the MLflow UI.")
    ui.add_argument("--port", type=int, default=5000, help=PORT_HELP)
    load = commands.add_parser("import-checkpoint", help=(import_checkpoint.__doc__ or "").split("\n")[0])
    load.add_argument("file", type=Path, help="state dict of a generator or discriminator: .pth, .safetensors")
    load.add_argument("--out", type=Path, help="save it as ours: a .safetensors file")
    load.add_argument("--register", action="store_true", help="register it for the dataset of params.yaml")
    return parser


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 2 a user's mistake, 130 or 143 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    quiet_environment()
    signal.signal(signal.SIGTERM, _stop)
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise unknown_name("stage", arguments[0], COMMANDS, where="dpgan")
        given = _parser().parse_args(arguments)
        if given.command == "ui":
            open_ui(given.port)
        elif given.command == "import-checkpoint":
            import_checkpoint(given.file, given.out, given.register)
        else:
            STAGES[given.command]()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"\n{arguments[0]} interrupted; run the same command again to go on", file=sys.stderr)
        return error.exit_code if isinstance(error, Stopped) else 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
