"""Reading a config file with its argument and its overrides."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from mmflax.config.overrides import override
from mmflax.errors import MmflaxError
from mmflax.registry import nearest


def load_config(
    source: str,
    overrides: Sequence[str] = (),
    note: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """The plain dict that ``file.py[:arg]`` returns, with ``--config.a.b=value`` applied.

    Args:
      source: a Python file with ``get_config(arg=None)``; text behind a colon is its argument. A
        path that is not there is also looked for among the configs that mmflax ships.
      overrides: ``--config.a.b=value`` words, as on the command line.
      note: called with a line about fields of the file that the overrides leave without a meaning;
        by default it is printed to stderr.

    Raises:
      MmflaxError: a missing file, an error in it, an unknown key (the nearest is named), or a
        value of another type.
    """
    return override(read_file(source), overrides, note)


def read_file(source: str) -> dict[str, Any]:
    """The plain dict that ``file.py[:arg]`` returns."""
    path, argument = _locate(source)
    try:
        spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config() if argument is None else module.get_config(argument)
    except Exception as error:  # whatever a user's file raises
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise MmflaxError(f"The config {path} failed with {text}") from error
    if not isinstance(config, ConfigDict):
        raise MmflaxError(
            f"get_config() in {path} returned {type(config).__name__}; expected a ConfigDict."
        )
    plain: dict[str, Any] = config.to_dict()
    return plain


def shipped(package: pathlib.Path) -> pathlib.Path | None:
    """The folder of the configs that come with mmflax, or None.

    They are inside an installed package, and beside it in mmflax's source checkout. A folder beside
    an installed package is somebody else's, and nothing in it is executed.
    """
    if (package / "configs").is_dir():
        return package / "configs"
    try:
        project = tomllib.loads((package.parent / "pyproject.toml").read_text(encoding="utf-8"))
        ours = project["project"]["name"] == "mmflax"
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        ours = False
    return package.parent / "configs" if ours else None


def _locate(source: str) -> tuple[str, str | None]:
    """The path of a config file, and its argument."""
    path, colon, text = source, "", ""
    if not os.path.exists(path) and ":" in path:
        path, colon, text = source.partition(":")
    argument = text if colon else None
    if os.path.isfile(path):
        return path, argument
    folder = shipped(pathlib.Path(__file__).parents[1])
    known = sorted(file.name for file in folder.glob("*.py")) if folder else []
    name = pathlib.Path(path).name
    if name in known and pathlib.Path(path).parent.name in ("", "configs"):
        return str(folder / name), argument  # type: ignore[operator]
    raise MmflaxError(
        f"There is no config file {path!r}{nearest(name, known)}; expected the path of a Python "
        f"file with get_config(), such as configs/{known[0] if known else 'x.py'}."
    )
