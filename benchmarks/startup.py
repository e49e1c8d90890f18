"""How many seconds pass from the command to the first training step, and with what?

Run: python -m benchmarks.startup [--rounds 3]
Each round is `python -m pipeline run quickstart --until train-tokenizer` at a fresh root, with three steps; the times
are taken by `startup_trace/sitecustomize.py` in every process. CPU seconds are steadier than wall seconds on a shared
machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import save

HERE = Path(__file__).parent
Event = tuple[float, float, str, str, str]  # wall, CPU, process, begin or end, name
MARKS = {  # cause: (kind, name) of the event that ends it; each begins where the one before ended
    "interpreter and imports of the command line": ("begin", "pipeline.cluster.joining.connect"),
    "Ray init (imports of Ray, MLflow, torch beside it)": ("end", "pipeline.cluster.joining.connect"),
    "prepare": ("begin", "pipeline.training.on_ray.fit"),
    "controller's process and imports": (
        "begin",
        "ray.train.v2._internal.execution.controller.controller.TrainController.__init__",
    ),
    "autoscaling coordinator": (
        "end",
        "ray.train.v2._internal.execution.controller.controller.TrainController.__init__",
    ),
    "worker's process and imports": ("begin", "pipeline.training.on_ray.run_worker"),
    "measured peak": ("end", "pipeline.training.worker.measured_peak"),
    "mirror": ("end", "pipeline.training.examples.training_images"),
    "model and optimizer": ("end", "pipeline.training.tokenizer.TokenizerTrainee.__init__"),
    "first step": ("end", "pipeline.training.tokenizer.TokenizerTrainee.step"),
}


def start(folder: Path) -> None:
    trace = folder / "trace"
    trace.mkdir(parents=True)
    paths = [str(HERE / "startup_trace"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "DVAE_STARTUP_TRACE": str(trace)}
    sets = [f"cluster.mirror={folder / 'mirror'}", "tokenizer.steps=3", "tokenizer.warmup=0"]
    command = [sys.executable, "-m", "pipeline", "run", "quickstart", "--until", "train-tokenizer"]
    command += ["--root", str(folder / "root"), *(part for value in sets for part in ("--set", value))]
    subprocess.run(command, check=True, env=environment, cwd=HERE.parent, stdout=subprocess.DEVNULL)


def read_trace(folder: Path) -> list[Event]:
    events: list[Event] = []
    for path in folder.glob("*.tsv"):
        for line in path.read_text().splitlines():
            wall, cpu, kind, name = line.split("\t", 3)
            events.append((float(wall), float(cpu), path.stem, kind, name))
    return sorted(events)


def by_cause(events: list[Event]) -> dict[str, float]:
    """Wall seconds of each cause, their sum, and CPU seconds of all Python processes until the first step's end."""
    begin, last = events[0][0], events[0][0]
    causes: dict[str, float] = {}
    for cause, (kind, name) in MARKS.items():
        reached = next(event[0] for event in events if event[3:] == (kind, name))
        causes[cause], last = reached - last, reached
    cpu = {process: used for wall, used, process, _, _ in events if wall <= last}  # the last of each process stays
    return {**causes, "all, wall": last - begin, "all, CPU": sum(cpu.values()), "processes": float(len(cpu))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: list[dict[str, float]] = []
    for _ in range(parser.parse_args().rounds):
        with tempfile.TemporaryDirectory() as folder:
            start(Path(folder))
            rounds.append(by_cause(read_trace(Path(folder) / "trace")))
    result: dict[str, Any] = {name: round(statistics.median(r[name] for r in rounds), 2) for name in rounds[0]}
    for name, value in result.items():
        print(f"{value:8.2f}  {name}")
    print(save("startup", {"seconds": result, "rounds": rounds}))


if __name__ == "__main__":
    main()
