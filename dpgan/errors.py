"""The one error type for what a user can mend."""


class UserError(Exception):
    """A user's mistake: the message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
