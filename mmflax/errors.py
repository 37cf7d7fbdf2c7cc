"""The one exception that a user is meant to read."""

import shlex


class MmflaxError(ValueError):
    """Bad input: one clear sentence saying what was found, what was expected, and what to change.

    The command line prints the message alone and exits with 1; library callers catch it as a
    ``ValueError``.
    """


def option(key: str, value: object) -> str:
    """``--config.a.b=VALUE`` as it is typed in a shell, for messages that say what to change."""
    text = str(value)
    text = text if '"' in text else text.replace("'", '"')
    return shlex.quote(f"--config.{key}={text}")
