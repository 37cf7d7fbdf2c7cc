"""Data sets prepared on disk: where they go, one process at a time, with progress on stderr."""

import contextlib
import fcntl
import io
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

from mmflax.errors import MmflaxError

Folder = str | os.PathLike[str] | None


def data_root(data_dir: Folder) -> pathlib.Path:
    """``data_dir``, else ``MMFLAX_DATA_DIR`` from the environment, else ``~/.cache/mmflax``."""
    root = data_dir or os.environ.get("MMFLAX_DATA_DIR") or "~/.cache/mmflax"
    return pathlib.Path(root).expanduser()


@contextlib.contextmanager
def locked(name: str, folder: pathlib.Path, lock: str = ".lock") -> Iterator[None]:
    """Makes ``folder`` and holds its lock; the system releases it even when the holder is killed.

    Raises:
      MmflaxError: the folder cannot be written, now or while the lock is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise MmflaxError(
            f"{name} cannot be prepared in {folder}: {error.strerror or error} "
            f"({error.filename or folder}); free some space, or set MMFLAX_DATA_DIR to a folder "
            "that can be written."
        ) from error


@contextlib.contextmanager
def progress(name: str, doing: str, done: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(count)``: a bar on a terminal, else a line at the start; a line at the end.

    All on stderr, because stdout may be a program's. Nothing is shown if it is never called.

    Args:
      name: of the data set.
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
    """Hides the bars and notes of tensorflow-datasets; its errors still arrive as exceptions."""
    import tensorflow_datasets as tfds

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints to stdout
            yield
    finally:
        logger.setLevel(level)
