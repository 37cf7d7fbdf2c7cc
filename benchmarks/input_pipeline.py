"""Examples per second of mmflax's input pipeline and of a torch DataLoader doing the same work.

    python benchmarks/input_pipeline.py --rounds 5

Both read 640x480 JPEGs of about 90 kB from a temporary folder and give shuffled float32 batches
[32 224 224 3]: decode, RGB, bicubic resize, normalize. Rounds alternate, so that a busy machine
slows both; each figure is the best round, the ratio is the median of the rounds' own ratios. Every
torch worker is a process; mmflax uses as many threads. "draft" lets the JPEG decoder skip the
pixels that the resize would average away; it is measured on both sides.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224


def write_images(folder: pathlib.Path, count: int) -> list[str]:
    """Photograph-like files: blurred fields of color with edges and fine texture."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        fields = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        patches = Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8))
        image = 0.6 * np.asarray(fields.resize((640, 480), Image.Resampling.BICUBIC), np.float32)
        image += 0.4 * np.asarray(patches.resize((640, 480), Image.Resampling.NEAREST), np.float32)
        image += rng.normal(0, 6, image.shape)
        path = folder / f"{index:05d}.jpg"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path, quality=85)
        paths.append(str(path))
    return paths


class TorchImages:
    """The map-style dataset that a torch user would write, with its arithmetic done in place."""

    def __init__(self, paths: list[str], draft: bool):
        import torch

        self.paths = paths
        self.draft = draft
        self.scale = torch.tensor([1 / (255 * s) for s in STD])
        self.shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        import torch

        with Image.open(self.paths[index]) as file:
            if self.draft:
                file.draft("RGB", (SIZE, SIZE))
            image = file.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).float().mul_(self.scale).add_(self.shift)


def torch_round(paths: list[str], batch_size: int, workers: int, draft: bool) -> Callable[[], int]:
    """Workers that stay alive between rounds; a round is one shuffled epoch."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    loader = DataLoader(
        TorchImages(paths, draft),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
        multiprocessing_context="spawn" if workers else None,
    )

    def run() -> int:
        return sum(len(batch.numpy()) for batch in loader)

    return run


def mmflax_round(paths: list[str], batch_size: int, threads: int, draft: bool) -> Callable[[], int]:
    """A round is as many batches as torch's epoch has, threads started and stopped."""
    from mmflax.data.dataset import in_memory
    from mmflax.data.pipeline import train_iterator
    from mmflax.data.processor import Processor

    rows = [{"image": path, "question": "what is it?", "answer": "noise"} for path in paths]
    data = in_memory({"train": rows})
    processor = Processor.learn(data, image_size=SIZE, mean=MEAN, std=STD, draft=draft)
    iterator = train_iterator(
        data.source("train"), processor, batch_size=batch_size, seed=0, num_threads=threads
    )

    def run() -> int:
        count = sum(len(iterator.next()["image"]) for _ in range(len(paths) // batch_size))
        iterator.close()
        return count

    return run


def stages(paths: list[str], draft: bool) -> dict[str, float]:
    """Milliseconds an image, on one thread, in each part of our work."""
    from mmflax.data.image import transforms

    scale, shift = transforms.affine(MEAN, STD, SIZE)
    out = np.empty((SIZE, SIZE, 3), np.float32)
    spent = {"read": 0.0, "decode": 0.0, "resize": 0.0, "normalize": 0.0}
    for path in paths:
        marks = [time.perf_counter()]
        content = pathlib.Path(path).read_bytes()
        marks.append(time.perf_counter())
        image = transforms.open_image(content, at_least=SIZE if draft else None)
        marks.append(time.perf_counter())
        image = transforms.resize(image, SIZE, how="squash", filter="bicubic")
        marks.append(time.perf_counter())
        transforms.normalize(image, scale, shift, out)
        marks.append(time.perf_counter())
        for name, start, end in zip(spent, marks, marks[1:], strict=False):
            spent[name] += end - start
    return {name: 1000 * seconds / len(paths) for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="torch processes, mmflax threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-torch", action="store_true", help="time mmflax alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(pathlib.Path(folder), options.images)
        size = sum(os.path.getsize(path) for path in paths) / len(paths)
        print(f"{len(paths)} JPEGs of {size / 1000:.0f} kB; {os.cpu_count()} CPUs", flush=True)
        for draft in (False, True):
            runs = {"mmflax": mmflax_round(paths, options.batch_size, options.workers, draft)}
            if not options.no_torch:
                runs["torch"] = torch_round(paths, options.batch_size, options.workers, draft)
            for run in runs.values():
                run()  # starts workers and fills the page cache
            rates: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(options.rounds):
                for name, run in runs.items():
                    started = time.perf_counter()
                    count = run()
                    rates[name].append(count / (time.perf_counter() - started))
            print("with draft" if draft else "every pixel decoded")
            for name, values in rates.items():
                print(f"  {name:7} {max(values):6.0f} examples/s  {[round(v) for v in values]}")
            if "torch" in rates:
                pairs = zip(rates["mmflax"], rates["torch"], strict=True)
                print(f"  ratio   {statistics.median(a / b for a, b in pairs):.2f}")
            parts = stages(paths[:128], draft)
            print(
                "  one thread, ms an image:", {k: round(v, 2) for k, v in parts.items()}, flush=True
            )


if __name__ == "__main__":
    main()
