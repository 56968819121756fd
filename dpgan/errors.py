"""What ends a command: what a user can fix, what may pass by itself, a signal."""

import errno
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


_RIGHTS = "give yourself the right to it, or work in a folder of your own"
_PLACE = "move away what is in its place"
_ROOM = "make room, then run this again"
REMEDIES = {
    errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS, errno.EROFS: "mount it writable, or work in a copy",
    errno.ENOENT: "restore it, then run this again", errno.ELOOP: "remove the link that leads back to itself",
    errno.EISDIR: _PLACE, errno.ENOTDIR: _PLACE, errno.EEXIST: _PLACE, errno.ENOTEMPTY: _PLACE,
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM,
}  # fmt: skip
# Of the system and not of a file: the disk, the network share, the process's limits. They may pass.
SYSTEM_FAILURES = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO,
                   errno.ENOMEM, errno.EMFILE, errno.ENFILE}  # fmt: skip


def of_system(error: OSError) -> UserError | None:
    """What a user can do about files that cannot be read or written; None for an error that is not about files."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in SYSTEM_FAILURES:
        return TemporaryError(f"{where}{error.strerror}; check the disk and the network, then run this again")
    if error.errno in REMEDIES:
        return UserError(f"{where}{error.strerror}; {REMEDIES[error.errno]}")
    return None


def some(names: Sequence[str], shown: int = 5) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
