"""The seal of a checkpoint: digests that say every file is whole and as it was written.

The seal is one file: the SHA-256 of its own body, a newline, then the body as JSON. ``files`` in
the body maps every other file to its digest. It is written last and renamed into place.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

SEAL = "SEAL"


def is_sealed(path: epath.Path) -> bool:
    """Whether writing this directory came to its end; damage afterwards is not looked for."""
    return (path / SEAL).exists()


def write(path: epath.Path, content: dict[str, Any]) -> None:
    """Digest every file under ``path`` and seal the directory with that and ``content``."""
    files = {str(file.relative_to(path)): file for file in _files(path)}
    body = json.dumps({**content, "files": _digests(files)}, sort_keys=True).encode()
    temporary = path / (SEAL + ".tmp")
    temporary.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    temporary.rename(path / SEAL)


def read(path: epath.Path) -> dict[str, Any]:
    """The seal's content; ValueError if the seal itself is damaged."""
    written = (path / SEAL).read_bytes()
    digest, _, body = written.partition(b"\n")
    if digest != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its digest and content differ")
    return json.loads(body)


def verify(path: epath.Path) -> str | None:
    """What is damaged in a sealed directory, or None."""
    try:
        expected = read(path)["files"]
    except (ValueError, OSError) as error:
        return f"the seal is damaged ({error})"
    files = {str(file.relative_to(path)): file for file in _files(path)}
    for name in sorted(files.keys() ^ expected.keys()):
        return f"{name} is {'unexpected' if name in files else 'missing'}"
    found = _digests(files)
    for name in sorted(files):
        if found[name] != expected[name]:
            return f"{name} differs from what was written"
    return None


def remove(path: epath.Path) -> None:
    """Remove a directory, its seal first: a removal cut short must not leave a sealed half."""
    (path / SEAL).unlink(missing_ok=True)
    path.rmtree()


def _files(path: epath.Path, top: bool = True) -> list[epath.Path]:
    found = []
    for entry in path.iterdir():
        if entry.is_dir():
            found += _files(entry, False)
        elif not (top and entry.name.startswith(SEAL)):
            found.append(entry)
    return found


def _digests(files: dict[str, epath.Path]) -> dict[str, str]:
    def digest(file: epath.Path) -> str:
        total = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                total.update(block)
        return total.hexdigest()

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(digest, files.values()), strict=True))
