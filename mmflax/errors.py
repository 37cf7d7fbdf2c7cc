"""The one exception that a user is meant to read."""


class MmflaxError(ValueError):
    """Bad input: one clear sentence saying what was found, what was expected, and what to change.

    The command line prints the message alone and exits with 1; library callers catch it as a
    ``ValueError``.
    """
