"""What the benchmarks share: alternating two sides in one run, the machine's name, the results' file."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def seconds(action: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure the sides in turn, `rounds` times, the order turned round each time: other load hits them alike."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides) if index % 2 == 0 else reversed(list(sides)):
            measured[name].append(sides[name]())
    return measured


def medians(measured: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in measured.items()}


def median_ratio(upper: list[float], lower: list[float]) -> float:
    """Median over the rounds of upper / lower: both of a round ran next to each other."""
    return statistics.median(a / b for a, b in zip(upper, lower, strict=True))


def hardware(device: str = "cpu") -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def save(name: str, result: dict[str, Any], device: str = "cpu", folder: Path = RESULTS) -> Path:
    """Write results/NAME.json, with the hardware and versions that it holds for."""
    about = {
        "hardware": hardware(device),
        "load_at_end": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_sha": _git_sha(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**about, **result}, indent=1) + "\n")
    return path


def _git_sha() -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent, check=False)
    return done.stdout.strip() or None
