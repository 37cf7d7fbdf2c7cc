"""Where the time of a training goes: examples a second of the input, of the step, and of both.

    python benchmarks/training_speed.py --config configs/folder.py:vqa:DIR --config.KEY=VALUE

Builds what `mmflax train` builds of the config, and measures in turn: the input pipeline alone, the
compiled step alone on one batch, and the loop, which reads the next batch while the step runs and
fetches the metrics. Each is measured `--rounds` times, the rounds taking turns, and the fastest
counts. On a CPU freed memory is kept, as `mmflax train` does; `--return-memory` leaves that to the
C library, to compare.
"""

import argparse
import json
import time

import jax

from mmflax import paths
from mmflax.config.reading import load_config
from mmflax.data import pipeline
from mmflax.distributed import mesh as meshes
from mmflax.errors import MmflaxError
from mmflax.platform import keep_freed_memory, platform
from mmflax.run.assemble import assemble
from mmflax.run.build import Experiment
from mmflax.run.decide import opened, training_flops
from mmflax.run.train import train_step
from mmflax.training import loop
from mmflax.training.state import create_sharded


def main() -> None:
    options, overrides = parse()
    kept = platform() == "cpu" and not options.return_memory and keep_freed_memory()
    experiment = Experiment(load_config(options.config, overrides))
    mesh = experiment.mesh()
    dataset = experiment.dataset()
    experiment, processor, _ = opened(experiment, dataset, mesh=mesh)
    source = dataset.source("train")
    experiment = experiment.of_length(len(source))
    built = assemble(experiment, processor, mesh)
    batch_size = experiment.data.batch_size

    def batches() -> pipeline.TrainIterator:
        return pipeline.train_iterator(
            source,
            processor,
            batch_size=batch_size,
            seed=experiment.seed,
            augment=experiment.augment(),
            max_bad_fraction=experiment.data.max_bad_fraction,
            num_threads=experiment.data.num_threads,
            prefetch=experiment.data.prefetch,
        )

    def create():
        return create_sharded(built.init, built.tx, jax.random.key(0), mesh, experiment.rules)

    def input_alone(steps: int) -> float:
        read = batches()
        for _ in range(experiment.data.prefetch + 1):  # those that are read ahead
            next(read)
        began = time.perf_counter()
        for _ in range(steps):
            next(read)
        seconds = time.perf_counter() - began
        read.close()
        return seconds

    read = batches()
    first = dict(next(read))
    first.pop("id", None)
    first = meshes.put_batch(first, mesh)
    read.close()
    step = train_step(experiment, built)
    compiled = meshes.compile_step(step, built.abstract, first, mesh)

    def step_alone(steps: int) -> float:
        state, sums = compiled(create(), first)
        jax.block_until_ready(sums)
        began = time.perf_counter()
        for _ in range(steps):
            state, sums = compiled(state, first)
        jax.block_until_ready(sums)
        return time.perf_counter() - began

    def in_loop(steps: int) -> float:
        """By the loop's own records, without the time of compiling."""
        seen = Rate()
        loop.run(
            train_step=step,
            abstract_state=built.abstract,
            create_state=create,
            batches=batches(),
            mesh=mesh,
            steps=2 * steps,
            log_every=steps,
            observers=[seen],
        )
        return steps * batch_size / seen.rate

    parts = {"input": input_alone, "step": step_alone, "loop": in_loop}
    fastest = dict.fromkeys(parts, float("inf"))
    for _ in range(options.rounds):
        for name, part in parts.items():
            fastest[name] = min(fastest[name], part(options.steps))
    rates = {name: options.steps * batch_size / seconds for name, seconds in fastest.items()}
    flops = training_flops(experiment, processor) * batch_size
    report = {
        "parameters": sum(leaf.size for leaf in paths.leaves(built.shapes).values()),
        "batch_size": batch_size,
        "freed_memory_kept": kept,
        "gflops_a_step": round(flops / 1e9, 2),
        "examples_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "step_gflops_per_second": round(flops / fastest["step"] * options.steps / 1e9, 1),
        "loop_over_step": round(fastest["loop"] / fastest["step"], 3),
    }
    print(json.dumps(report, indent=2))


class Rate:
    """Keeps the loop's last examples a second; for the rest an observer that does nothing."""

    rate = 0.0

    def start(self, step: int, steps: int) -> None: ...

    def message(self, text: str) -> None: ...

    def record(self, step: int, values: dict[str, float]) -> None:
        self.rate = values.get("examples_per_second", self.rate)

    def close(self) -> None: ...


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=20, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--return-memory", action="store_true")
    return parser.parse_known_args()


if __name__ == "__main__":
    try:
        main()
    except MmflaxError as error:
        raise SystemExit(f"training_speed: {error}") from None
