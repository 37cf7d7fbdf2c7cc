"""SHA-256 checksums of a checkpoint directory.

They lie in one file, ``SEAL``: the SHA-256 of its own body, a newline, then the body as JSON.
``files`` in the body maps every other file to its digest. The file is written last and renamed into
place, so a directory that has it is complete.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from mmflax.files import write_file

FILE = "SEAL"


def is_complete(path: epath.Path) -> bool:
    """Whether the directory was written to its end; later damage is not looked for."""
    return bool((path / FILE).exists())


def write(path: epath.Path, content: dict[str, Any]) -> None:
    """Write the checksums of every file under ``path``, together with ``content``."""
    _write(path, {**content, "files": _digests(_files(path))})


def amend(path: epath.Path, **content: Any) -> None:
    """Change parts of the content; the checksums stay as they were written."""
    _write(path, {**read(path), **content})


def _write(path: epath.Path, content: dict[str, Any]) -> None:
    body = json.dumps(content, sort_keys=True).encode()
    write_file(path / FILE, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read(path: epath.Path) -> dict[str, Any]:
    """The content written with the checksums; ValueError if the file itself is damaged."""
    digest, _, body = (path / FILE).read_bytes().partition(b"\n")
    if digest != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its digest and content differ")
    content: dict[str, Any] = json.loads(body)
    return content


def verify(path: epath.Path) -> str | None:
    """What is damaged in a complete directory, or None."""
    try:
        expected = read(path)["files"]
    except (ValueError, OSError) as error:
        return f"the checksum file {FILE} is damaged ({error})"
    files = _files(path)
    for name in sorted(files.keys() ^ expected.keys()):
        return f"{name} is {'unexpected' if name in files else 'missing'}"
    actual = _digests(files)
    for name in sorted(files):
        if actual[name] != expected[name]:
            return f"{name} differs from what was written"
    return None


def remove(path: epath.Path) -> None:
    """Remove a directory, its checksums first: a removal cut short leaves it incomplete."""
    (path / FILE).unlink(missing_ok=True)
    path.rmtree()


def _files(path: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    """Relative name -> path of every file but the checksums."""
    files: dict[str, epath.Path] = {}
    for entry in path.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            files |= _files(entry, name + "/")
        elif not name.startswith(FILE):
            files[name] = entry
    return files


def _digests(files: dict[str, epath.Path]) -> dict[str, str]:
    def digest(file: epath.Path) -> str:
        total = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                total.update(block)
        return total.hexdigest()

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(digest, files.values()), strict=True))
