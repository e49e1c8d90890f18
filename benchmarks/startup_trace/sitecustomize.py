"""Loaded by every Python process of a run that `benchmarks/startup.py` starts: says when what began and ended.

Each process appends lines (seconds since the epoch, "begin" or "end", name) to its own file in DVAE_STARTUP_TRACE.
The product code knows nothing of it: modules and functions are wrapped as they are imported.
"""

import functools
import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

# Module: the functions in it to be timed (the first call only).
WATCHED: dict[str, tuple[str, ...]] = {
    "pipeline.workflow.runner": ("Runner._services", "Runner.produce"),
    "pipeline.cluster.joining": ("connect", "disconnect"),
    "pipeline.tracking.courier": ("deliver",),
    "pipeline.training.on_ray": ("run_training", "fit", "run_worker", "_world"),
    "pipeline.training.worker": ("measured_peak", "train"),
    "pipeline.training.examples": ("training_images",),
    "pipeline.training.tokenizer": ("TokenizerTrainee.__init__", "TokenizerTrainee.step"),
    "pipeline.data.prepare": ("prepare_unit",),
    "ray.train.v2.api.data_parallel_trainer": (
        "DataParallelTrainer.fit",
        "DataParallelTrainer._initialize_and_run_controller",
    ),
    "ray.train.v2._internal.execution.controller.controller": ("TrainController.__init__",),
    "ray.train.v2._internal.execution.worker_group.worker_group": ("WorkerGroup._start",),
    "ray.train.v2._internal.execution.worker_group.worker": (
        "RayTrainWorker.init_train_context",
        "RayTrainWorker.__init__",
    ),
    "ray.train.torch.config": ("_TorchBackend.on_start",),
    "torch": (),
    "torch._dynamo": (),
    "torchvision": (),
    "timm": (),
    "ray": (),
    "ray.data": (),
    "ray.train": (),
    "ray.train.torch": (),
    "mlflow": (),
    "pandas": (),
    "pyarrow": (),
    "pyarrow.dataset": (),
    "sklearn": (),
    "sklearn.datasets": (),
    "scipy": (),
    "matplotlib": (),
    "transformers": (),
    "lpips": (),
    "torchmetrics": (),
    "boto3": (),
    "pipeline.cli.app": (),
    "pipeline.config": (),
}  # fmt: skip


def say(kind: str, name: str, when: float | None = None) -> None:
    line = f"{time.time() if when is None else when:.4f}\t{time.process_time():.3f}\t{kind}\t{name}\n"
    with open(f"{os.environ['DVAE_STARTUP_TRACE']}/{os.getpid()}.tsv", "a") as file:
        file.write(line)


def process_began() -> float:
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as file:
        up = float(file.read().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    said = False

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal said
        detail = f"{name}({args[1]})" if name.endswith("Runner.make") else name
        if said and detail == name:
            return function(*args, **kwargs)
        said = True
        say("begin", detail)
        try:
            return function(*args, **kwargs)
        finally:
            say("end", detail)

    return wrapped


class Watcher(importlib.abc.MetaPathFinder):
    """Wraps the loaders of the watched modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    self._wrap(spec.loader, name)
                return spec
        return None

    def _wrap(self, loader: Any, name: str) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            say("begin", f"import {name}")
            try:
                execute(module)
            finally:
                say("end", f"import {name}")
            for path in WATCHED[name]:
                *owners, attribute = path.split(".")
                owner: Any = functools.reduce(getattr, owners, module)
                setattr(owner, attribute, timed(getattr(owner, attribute), f"{name}.{path}"))

        loader.exec_module = exec_module


if "DVAE_STARTUP_TRACE" in os.environ:
    say("begin", "process", process_began())
    with open("/proc/self/cmdline") as _file:
        say("begin", "python " + _file.read().replace("\0", " ")[:200])
    sys.meta_path.insert(0, Watcher())
