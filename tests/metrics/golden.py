"""What the official programs said: see tests/golden/record_metrics.py."""

import json
import pathlib

FOLDER = pathlib.Path(__file__).parent.parent / "golden"


def load(name):
    return json.loads((FOLDER / f"metrics_{name}.json").read_text(encoding="utf-8"))
