"""Makes the benchmark's data sets as folders in the `imagefolder` layout (docs/data.md).

    python -m benchmarks.small_data.make --data DIR --set one_shape     # writes DIR/one_shape
    python -m benchmarks.small_data.make --data DIR --set drawings --packages PACKAGES \\
        --test-artist noto                                              # DIR/drawings_noto

The same seed gives the same pictures and rows with the same versions of Pillow and, for `digits`
and `drawings`, of the extra `benchmarks`.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import zlib
from pathlib import Path

import numpy as np

from . import drawings

SETS = (
    "one_shape",
    "drawings",
    "sort_of_clevr",
    "digits",
    "rendered_text",
    "fine_colors",
    "counting",
)


def make(name, folder, *, seed=0, sizes=None, **options):
    """Writes the set `name` into `folder`, which must not exist.

    Args:
      name: of `SETS`.
      folder: where `train`, `validation` and `test` come to lie.
      seed: what every random choice follows from, together with the names of set and split.
      sizes: {split: pictures}, None = all that there are; by default the module's `SIZES`.
      **options: further keywords of the module's `scenes`.

    Returns:
      {split: [Scene]}, without their images.
    """
    module = importlib.import_module(f"{__package__}.{name}")
    folder, made, seen = Path(folder), {}, set()
    folder.mkdir(parents=True)
    for split, count in (sizes or module.SIZES).items():
        rng = np.random.default_rng([seed, zlib.crc32(f"{name}/{split}".encode())])
        new = (scene for scene in module.scenes(split, rng, **options) if _is_new(scene, seen))
        made[split] = write(folder / split, itertools.islice(new, count))
    return made


def write(folder, scenes):
    """Writes a split's pictures and `metadata.jsonl`; returns the scenes without their images."""
    (folder / "images").mkdir(parents=True)
    written = []
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as out:
        for index, scene in enumerate(scenes):
            file_name = f"images/{index:05d}.png"
            scene.image.save(folder / file_name, compress_level=1)
            for row in scene.rows:
                print(json.dumps({"file_name": file_name, **row}, ensure_ascii=False), file=out)
            written.append(scene._replace(image=None))
    return written


def _is_new(scene, seen):
    """Whether no picture before, of any split, has the same pixels."""
    digest = hashlib.sha256(scene.image.tobytes()).digest()
    new = digest not in seen
    seen.add(digest)
    return new


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets' folders")
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", type=Path, help="drawings: folder with node_modules")
    parser.add_argument(
        "--test-artist", choices=drawings.ARTISTS, default=drawings.ARTISTS[-1], help="drawings"
    )
    arguments = parser.parse_args()
    folder, options = arguments.data / arguments.set, {}
    if arguments.set == "drawings":
        if arguments.packages is None:
            parser.error("drawings needs --packages; benchmarks/small_data/drawings.py says which")
        folder = arguments.data / f"drawings_{arguments.test_artist}"
        options = dict(packages=arguments.packages, test=arguments.test_artist)
    for split, scenes in make(arguments.set, folder, seed=arguments.seed, **options).items():
        rows = sum(len(scene.rows) for scene in scenes)
        print(f"{folder / split}: {len(scenes)} pictures, {rows} rows")


if __name__ == "__main__":
    main()
