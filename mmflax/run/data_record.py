"""The data that a run was trained on: ``data.json`` of a workdir, and what has changed since.

It holds, for every split, a digest of each row and a fingerprint of each image, and the names of
what was held out of train for validation. A run that goes on holds out the same names, so no image
crosses from training into validation.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mmflax.data.contents import Contents
from mmflax.data.dataset import Dataset, text_of
from mmflax.data.datasets.folder.dataset import former_digest
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.files import write_file
from mmflax.run.build import Experiment

FILE = "data.json"
_FORMAT = 1
_FACTS = ("fingerprint", "left_out")


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """What a run was trained on.

    Attributes:
      splits: what each split holds, ``train`` with what is held out; nothing where the data set
        does not say.
      counts: examples of each split, as training and evaluation read them.
      held_out: see `mmflax.data.contents.Origin`.
      former: images that were trained on and are in train no more, name -> fingerprint.
      facts: of ``Dataset.info``, where the data set does not say what its splits hold.
    """

    splits: Mapping[str, Contents]
    counts: Mapping[str, int]
    held_out: tuple[str, ...]
    former: Mapping[str, str]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def trained(self) -> dict[str, str]:
        """Every image that was ever trained on, name -> fingerprint."""
        held = set(self.held_out)
        now = self.splits["train"].images if "train" in self.splits else {}
        return {**self.former, **{k: v for k, v in now.items() if k not in held}}

    def followed_by(self, new: DataRecord) -> DataRecord:
        """The record of a run that goes on with other data."""
        trained = new.trained
        former = {name: mark for name, mark in self.trained.items() if trained.get(name) != mark}
        return dataclasses.replace(new, former=former)

    def save(self, root: pathlib.Path) -> None:
        """Writes ``data.json``."""
        values = {
            "format": _FORMAT,
            "examples": dict(self.counts),
            "held_out": list(self.held_out),
            "former": dict(self.former),
            "facts": dict(self.facts),
            "splits": {
                name: {"rows": dict(sorted(split.rows.items())), "images": dict(split.images)}
                for name, split in self.splits.items()
            },
        }
        write_file(root / FILE, json.dumps(values, ensure_ascii=False) + "\n")


def record_of(dataset: Dataset) -> DataRecord:
    """Of data as they are now."""
    origin = dataset.origin
    return DataRecord(
        {} if origin is None else origin.contents(),
        {name: len(source) for name, source in dataset.splits.items()},
        () if origin is None else origin.held_out,
        {},
        {key: dataset.info[key] for key in _FACTS if origin is None and key in dataset.info},
    )


def read_record(root: pathlib.Path) -> DataRecord | None:
    """``data.json`` of a workdir; None where there is none."""
    path = root / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']} is not {_FORMAT}")
        splits = {
            name: Contents(Counter(split["rows"]), split["images"])
            for name, split in values["splits"].items()
        }
        return DataRecord(
            splits, values["examples"], tuple(values["held_out"]), values["former"], values["facts"]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MmflaxError(f"{path} cannot be used: {error}; restore it.") from error


def hold_out_of(former: Mapping[str, Any] | None, record: DataRecord | None) -> dict[str, Any]:
    """Keywords of a data set that hold out of train what the run of this workdir held out.

    Args:
      former: the run's config; None of a new run.
      record: what it was trained on; None of a run from before there were records, whose images
        were chosen by their names with the path of the folder as it was written.
    """
    if record is not None:
        return {"held_out": record.held_out}
    path = (former or {}).get("data", {}).get("path")
    return {"former_path": path} if path else {}


def compared(
    root: pathlib.Path,
    former: Mapping[str, Any] | None,
    record: DataRecord | None,
    dataset: Dataset,
    splits: Iterable[str],
    experiment: Experiment,
) -> tuple[DataRecord, list[str]]:
    """The record of the run as it goes on with these data, and sentences on what changed.

    Args:
      root: the workdir.
      former: its config; None of a new run.
      record: its record; None of a new run or one from before there were records.
      splits: that are read; changes of others matter to nobody yet.
      experiment: whose ``data.changed`` and ``data.allow_leak`` decide what is refused.

    Raises:
      MmflaxError: what changed, unless that is accepted.
    """
    now = record_of(dataset)
    accept = experiment.data.changed == "accept"
    if record is None:
        return now, check_former(root, former, dataset, accept=accept) if former else []
    changes = check_unchanged(record, now, dict.fromkeys(splits), accept=accept, where=root)
    if not experiment.config["data"].get("allow_leak"):
        check_crossing(record, now, root)
    return (record.followed_by(now) if changes else record), changes


def check_unchanged(
    old: DataRecord, new: DataRecord, splits: Iterable[str], *, accept: bool, where: Any
) -> list[str]:
    """Sentences on what changed in these splits since the run began; nothing where all is equal.

    A split that the run did not have is no change.

    Raises:
      MmflaxError: they changed and that is not accepted, or an image that was trained on is now in
        another split.
    """
    changes = []
    for split in splits:
        if split in old.splits or split in new.splits:
            if split in old.splits:
                now = new.splits.get(split, Contents(Counter(), {}))
                if found := now.changes_from(old.splits[split]):
                    changes.append(f"{split}: {', '.join(found)}")
        elif not new.splits and old.counts.get(split, new.counts.get(split)) != new.counts.get(
            split
        ):
            then, count = old.counts[split], new.counts.get(split, 0)
            changes.append(f"{split}: {then} examples then, {count} now")
    for key in old.facts.keys() & new.facts.keys():
        if old.facts[key] != new.facts[key]:
            changes.append(f"{key}: {old.facts[key]} then, {new.facts[key]} now")
    if changes and not accept:
        raise MmflaxError(
            f"The data changed since the run in {where} began ({'; '.join(changes)}); go on with "
            "--config.data.changed=accept, which holds out the same images as before, or give "
            "another --workdir."
        )
    return changes


def check_former(
    root: pathlib.Path, former: Mapping[str, Any], dataset: Dataset, *, accept: bool
) -> list[str]:
    """Like `check_unchanged`, for a run without a record, by the digest in its ``run.json``."""
    try:
        known = json.loads((root / "run.json").read_text(encoding="utf-8"))["dataset"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    path = former.get("data", {}).get("path")
    if dataset.name != "folder" or not path:
        return []
    if known in (dataset.info["sha256"], former_digest(dataset, path)):
        return []
    changes = ["which rows is not known, since the run is older than data.json"]
    if not accept:
        raise MmflaxError(
            f"The data changed since the run in {root} began ({changes[0]}); go on with "
            "--config.data.changed=accept, or give another --workdir."
        )
    return changes


def unknown_answers(dataset: Dataset, splits: Iterable[str], processor: Processor) -> str | None:
    """One sentence on the answers that a run's list, made when it began, does not have."""
    unknown: Counter[str] = Counter()
    for split in splits:
        source = dataset.splits.get(split, ())
        for index in range(len(source)):
            answer = text_of(source, index).get("answer")
            if answer is not None and processor.label(answer) < 0:
                unknown[answer] += 1
    if not unknown:
        return None
    named = ", ".join(repr(answer) for answer, _ in unknown.most_common(3))
    return (
        f"{unknown.total()} examples have answers that this run does not know ({named}"
        f"{', …' if len(unknown) > 3 else ''}), since its list was made when it began: they teach "
        "nothing and count as wrong"
    )


def check_crossing(old: DataRecord, new: DataRecord, where: Any) -> None:
    """Raises for an image of another split that the run was trained on before it came there."""
    names = old.trained
    marks = {mark: name for name, mark in names.items()}
    train = new.splits["train"].images if "train" in new.splits else {}
    for split, contents in new.splits.items():
        known = old.splits[split].images if split in old.splits else {}
        for name, mark in contents.images.items() if split != "train" else ():
            was = marks.get(mark)
            unreadable = mark.startswith("0:")  # an empty file teaches nothing
            if was is not None and not unreadable and was not in train and known.get(name) != mark:
                raise MmflaxError(
                    f"The image {name} of {split} was {was} of train when the run in {where} was "
                    "trained on it, so the score would be of what was learned by heart; take it "
                    "out, or set --config.data.allow_leak=True."
                )
