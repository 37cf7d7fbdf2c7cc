"""How far each family of public checkpoints is from its original: docs/checkpoints.md's figures.

    python benchmarks/pretrained_parity.py [FAMILY ...] [--small]

For every case of `tests/parity/` the original with random weights is written to a
folder, loaded through `mmflax.from_pretrained`, and both read the same batch in float32. Printed is
the largest difference of any output or hidden state, over that output's largest value: of all
small cases, and of the full published size (left out by --small). Needs the extra `parity`.
"""

import argparse
import gc
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from mmflax.pretrained.checkpoint import from_pretrained
from tests.pretrained import cases


def worst(case):
    """The largest of `cases.differences`, and the output's name."""
    module, batch = case.original(), cases.batch_of(case)
    with tempfile.TemporaryDirectory() as folder:
        cases.save_original(case, module, pathlib.Path(folder) / "original")
        pretrained = from_pretrained(pathlib.Path(folder) / "original", **case.options)
        found = cases.differences(
            case, cases.theirs(case, module, batch), cases.ours(case, pretrained, batch), batch
        )
    name = max(found, key=lambda key: found[key])
    return found[name], name, len(found)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="all by default")
    parser.add_argument("--small", action="store_true", help="leave the full sizes out")
    options = parser.parse_args()
    unknown = sorted(set(options.families) - set(cases.families()))
    if unknown:
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(cases.families())}")
    print("| family | size | compared | largest difference | in |\n| --- | --- | --- | --- | --- |")
    for family in options.families or cases.families():
        for size, attribute in (("small", "CASES"), ("full", "BASE")):
            if size == "full" and options.small:
                continue
            rows = {}
            for name, case in cases.all_cases(attribute).items():
                if name.split("/")[0] == family:
                    rows[name] = worst(case)
                    gc.collect()
            if not rows:
                continue
            if size == "small":
                label = f"{len(rows)} small cases"
                rows = {max(rows, key=lambda name: rows[name][0]): max(rows.values())}
            for name, (difference, output, count) in rows.items():
                label = label if size == "small" else name.split("/", 1)[1]
                place = f"{name.split('/')[1]}: {output}" if size == "small" else output
                print(f"| {family} | {label} | {count} arrays | {difference:.1e} | {place} |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
