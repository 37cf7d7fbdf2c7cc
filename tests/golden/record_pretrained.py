"""Records `pretrained/FAMILY-CASE/`: a small original's checkpoint, a batch, and its outputs.

    python tests/golden/record_pretrained.py [FAMILY ...]

Needs the extra `parity` (torch and transformers); the tests that read what it writes do not.
Weights are random: the originals are those of transformers, or for families that it lacks the ones
written in tests/parity/.
"""

import json
import pathlib
import shutil
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.pretrained import cases  # noqa: E402

LIMIT = 1_000_000  # bytes of one recorded case


def record(name: str, case: cases.Case) -> None:
    directory = cases.GOLDEN / name.replace("/", "-")
    shutil.rmtree(directory, ignore_errors=True)
    module, batch = case.original(), cases.batch_of(case)
    cases.save_original(case, module, directory)
    outputs = cases.theirs(case, module, batch)
    arrays = {f"batch:{k}": v for k, v in batch.items()}
    arrays |= {f"output:{k}": v for k, v in outputs.items()}
    np.savez_compressed(directory / "arrays.npz", **arrays)
    (directory / "generation_config.json").unlink(missing_ok=True)
    size = sum(file.stat().st_size for file in directory.iterdir())
    assert size < LIMIT, f"{name} takes {size} bytes; make it smaller"
    print(f"{name}: {size} bytes, {len(outputs)} outputs")


def main(wanted: list[str]) -> None:
    everything = {name: case for name, case in cases.all_cases().items() if case.golden}
    for name, case in everything.items():
        if not wanted or name.split("/")[0] in wanted:
            record(name, case)
    index = json.dumps(sorted(everything), indent=1)
    (cases.GOLDEN / "index.json").write_text(index + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
