"""What a message says to type, as a shell would read it."""

import re


def hints(message: object) -> list[str]:
    """The ``--config.a.b=VALUE`` words of a message, without the punctuation of its sentence."""
    found = re.findall(r"'(--config\.[^']+)'|(--config\.[\w.]+=[^\s;]*[^\s;.,)])", str(message))
    return [quoted or plain for quoted, plain in found]
