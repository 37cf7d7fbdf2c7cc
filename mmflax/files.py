"""Files written whole or not at all."""

from etils import epath

from mmflax.errors import MmflaxError


def write_file(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part of it.

    The content goes to a temporary file beside it, which then takes its name; so a full disk or a
    killed process leaves the old file. Text is UTF-8.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.partial"
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def check_folder(path: epath.PathLike) -> None:
    """Raises unless the folder of a file that will be written is there."""
    folder = epath.Path(path).parent
    if not folder.is_dir():
        raise MmflaxError(
            f"There is no folder {folder} to write {epath.Path(path).name} to; make it."
        )
