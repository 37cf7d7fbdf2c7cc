"""The folder of a run: its config, its processor, what was left out."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from mmflax.config.compare import located
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.files import write_file
from mmflax.run.data_record import DataRecord
from mmflax.training import observe


def read_config(root: pathlib.Path) -> dict[str, Any]:
    """``config.json`` of a workdir."""
    path = root / "config.json"
    if not path.exists():
        raise MmflaxError(
            f"There is no config.json in {root}; expected the --workdir of a run that was trained."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MmflaxError(f"{path} is not readable JSON ({error}); restore it.") from error


def prepare_workdir(
    root: pathlib.Path, config: Mapping[str, Any], processor: Processor, data: DataRecord | None
) -> None:
    """Writes what a run is known by; the record of its data first, since it may have a config and
    no record only if it is older than records."""
    root.mkdir(parents=True, exist_ok=True)
    if data is not None:
        data.save(root)
    path = root / "config.json"
    kept = located(config)
    if "data" in kept:  # accepting is for one command
        kept["data"].pop("changed", None)
    text = json.dumps(kept, indent=1, default=str) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_file(path, text)
    if not (root / "processor.json").exists():
        processor.save(root)


def note_bad_images(
    root: pathlib.Path, observers: Sequence[observe.Observer]
) -> Callable[..., None]:
    """Names an example that is left out for its image, on the screen and in the workdir."""
    path = root / f"bad_images.{jax.process_index()}.jsonl"

    def note(example: str, reason: str) -> None:
        for observer in observers:
            observer.message(f"left out example {example}: {reason}")
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"id": example, "reason": reason}) + "\n")

    return note
