"""What ends a command: what a user can fix, what may pass by itself, a signal."""

import os
import re
from collections.abc import Sequence

_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # of a URL: user:password or a token


def without_logins(text: str) -> str:
    """A text with the logins of its URLs taken out; for what is printed, logged or recorded."""
    return _LOGIN.sub("***", text)


class UserError(Exception):
    """A user's mistake: the message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with `exit_code`. Logins of URLs are taken out.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(without_logins(message))


class TemporaryError(UserError):
    """What may pass when it is tried again: a service that is away, a lock that is taken, a store that is busy."""

    exit_code = os.EX_TEMPFAIL  # 75


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM asked for an end. `exit_code` as shells count: 128 and the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


def some(names: Sequence[str], shown: int = 5) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
