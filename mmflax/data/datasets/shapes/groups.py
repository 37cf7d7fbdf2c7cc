"""Label-balanced groups of examples of one sentence.

Drawing labels evenly is not enough: some sentences are true more often than others, which a model
that reads the text alone learns. Here each sentence has exactly as many images of each label in
every split, so that the text alone gives chance accuracy, and each image is used at most ``quota``
times for each label, so that the image alone gives little more.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from mmflax.data.datasets.shapes.statements import Statement

Group = tuple[Statement, list[tuple[int, int]]]


def balanced(
    statements: Iterable[Statement],
    owners: np.ndarray,
    bits: np.random.PCG64,
    *,
    num_labels: int,
    per_label: int = 1,
    quota: int = 1,
) -> list[Group]:
    """Groups of a statement and its (unit, label) pairs, as many of each label.

    A unit is what a statement's labels run over: a scene, or a pair of scenes. Kinds of statements
    take turns, and so do the statements of a kind. Units where the statement nearly holds go first.

    Args:
      statements: labels 0 up to ``num_labels``; other units are left alone.
      owners: int [n], the scene that each unit counts for.
      bits: decides the order; only raw bits are used, which numpy keeps stable.
      num_labels: how many labels there are.
      per_label: units of each label in a group; fewer where a statement runs out of them.
      quota: how often a scene may serve for one label.
    """
    owner = [int(scene) for scene in owners]
    used = [[0] * (max(owner, default=-1) + 1) for _ in range(num_labels)]
    queues: dict[str, deque[tuple[Statement, list[Iterator[int]]]]] = {}
    # One order for all, entered at a point of each statement's own: a sort for each costs seconds.
    order = np.argsort(bits.random_raw(len(owner)), kind="stable").astype(np.int32)
    statements = list(statements)
    for index in np.argsort(bits.random_raw(len(statements)), kind="stable"):
        statement = statements[int(index)]
        start = int(bits.random_raw() % max(1, len(order)))
        units = np.roll(order, -start)
        labels, near = statement.labels[units], statement.near[units]
        lists = []
        for label in range(num_labels):
            fits = labels == label
            lists.append(iter(np.concatenate([units[fits & near], units[fits & ~near]])))
        queues.setdefault(statement.kind, deque()).append((statement, lists))
    groups: list[Group] = []
    while queues:
        for kind in sorted(queues):
            statement, lists = queues[kind].popleft()
            group: list[tuple[int, int]] = []
            drawn = []
            for label, left in enumerate(lists):
                drawn.append(_take(left, owner, used[label], per_label, quota))
                if not drawn[-1]:
                    break
            else:
                size = min(map(len, drawn))
                for label, chosen in enumerate(drawn):
                    for unit in chosen[:size]:
                        used[label][owner[unit]] += 1
                        group.append((unit, label))
                groups.append((statement, group))
                queues[kind].append((statement, lists))
            if not queues[kind]:
                del queues[kind]
    return groups


def _take(
    units: Iterator[int], owner: list[int], used: list[int], wanted: int, quota: int
) -> list[int]:
    """The next units whose scenes are below the quota; skipped ones stay above it."""
    taken: list[int] = []
    scenes: set[int] = set()
    for unit in units:
        scene = owner[unit]
        if used[scene] < quota and scene not in scenes:
            taken.append(int(unit))
            scenes.add(scene)
            if len(taken) == wanted:
                break
    return taken
