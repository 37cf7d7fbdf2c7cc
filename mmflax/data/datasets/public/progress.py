"""How long-running preparation shows itself: on stderr, because stdout may be a program's."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(name: str, doing: str, done: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(count)``: a bar on a terminal, else a line at the start; a line at the end.

    Nothing is shown when it is never called.

    Args:
      name: of the dataset.
      doing: such as ``"drawing {} scenes"``.
      done: such as ``"drew {} scenes"``.
      total: to go.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    started = time.monotonic()
    count = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{name}: {doing.format(total)}", total=total, visible=False)

        def advance(more: int = 1) -> None:
            nonlocal count
            if not count and not console.is_terminal:
                print(f"{name}: {doing.format(total)} ...", file=sys.stderr, flush=True)
            count += more
            bar.update(task, advance=more, visible=True)

        yield advance
    if count:
        seconds = time.monotonic() - started
        print(f"{name}: {done.format(count)} in {seconds:.1f} s", file=sys.stderr)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps tensorflow-datasets' bars and notes away; its errors still arrive as exceptions."""
    import tensorflow_datasets as tfds

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        # It prints to stdout, which belongs to --json.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
