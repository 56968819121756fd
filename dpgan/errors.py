"""The one error type for what a user can mend."""

from collections.abc import Sequence


class UserError(Exception):
    """A user's mistake: the message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM asked for an end. `exit_code` as shells count: 128 and the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


def some(names: Sequence[str], shown: int = 5) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
