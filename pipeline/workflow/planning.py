"""`plan`: what a run would do and cost; nothing is run."""

from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.artifacts import SHORT, Manifest
from pipeline.cluster import tasks_per_gpu
from pipeline.config import Config
from pipeline.console import duration
from pipeline.data import read_index
from pipeline.storage import open_storage
from pipeline.weights import missing_weights
from pipeline.workflow.costs import device_hours, sit_sizes, split_sizes, tokenizer_sizes
from pipeline.workflow.graph import SECTIONS, section_of
from pipeline.workflow.imported import import_faults
from pipeline.workflow.imported_sit import sit_faults
from pipeline.workflow.longer import beginnings, resumed_step, steps_of
from pipeline.workflow.preflight import warnings
from pipeline.workflow.starts import start_faults
from pipeline.workflow.status import Node, artifacts_of


def make_plan(config: Config, nodes: list[Node]) -> dict[str, Any]:
    """The plan as JSON: stages, and the sizes of both networks.

    `device_hours` are those of the whole stage, `device_hours_left` of what a run has still to do. `resumes_at` of a
    trainer's stage is the step of its own checkpoint, `goes_on_from` the shorter training at whose last step it will
    begin, if there is one.
    """
    made = artifacts_of(nodes)
    images, validation_images = split_sizes(config, made.get("prepare"))
    tokenizer = tokenizer_sizes(config, made.get("train-tokenizer"))
    sit = sit_sizes(config, made.get("train-sit"))
    to_run = [node.stage.name for node in nodes if node.status != "cached"]
    begins = beginnings(config, to_run)
    shorter = {stage: found for stage, (found, _) in begins.items() if found is not None}
    resumed = {stage: step for stage in SECTIONS if stage in to_run and (step := resumed_step(config, stage))}
    done = {**{stage: steps_of(found) for stage, found in shorter.items()}, **resumed}
    hours, left = (
        device_hours(config, tokenizer, sit["gflops"], images, validation_images, behind) for behind in ({}, done)
    )
    stages = [
        {
            "name": node.stage.name,
            "status": node.status,
            "fingerprint": node.fingerprint,
            "uri": node.uri,
            "device_hours": hours.get(node.stage.name, 0.0),
            "device_hours_left": left.get(node.stage.name, 0.0) if node.status != "cached" else 0.0,
            "tasks_per_gpu": tasks_per_gpu(config.cluster, node.stage.name),
            "resumes_at": resumed.get(node.stage.name),
            "goes_on_from": _last_step(shorter.get(node.stage.name)),
        }
        for node in nodes
    ]
    return {
        "stages": stages,
        "tokenizer": {"parameters": tokenizer.parameters, "gflops": tokenizer.gflops, "gmacs": tokenizer.gmacs},
        "sit": sit,
        "images": {"train": images, "validation": validation_images},
        "warnings": [
            *missing_weights(config),
            *map(str, import_faults(config, made.get("train-tokenizer"))),
            *map(str, sit_faults(config, made.get("train-sit"))),
            *map(str, start_faults(config, to_run)),
            *(reason for _, reason in begins.values() if reason is not None),
            *warnings(config, to_run),
        ],
    }


def _last_step(made: Manifest | None) -> dict[str, Any] | None:
    """A trainer's artifact and its last step."""
    return None if made is None else {"artifact": made.name, "step": steps_of(made)}


def print_plan(console: Console, config: Config, plan: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "status", "fingerprint", "device time", "left"):
        table.add_column(heading, no_wrap=True)
    for stage in plan["stages"]:
        table.add_row(
            stage["name"],
            stage["status"],
            (stage["fingerprint"] or "-")[:SHORT],
            *(duration(hours * 3600) if hours else "" for hours in (stage["device_hours"], stage["device_hours_left"])),
        )
    console.print(table)
    console.print(
        f"{'artifacts':<10} {open_storage(config.root).uri('STAGE/FINGERPRINT')}", highlight=False, soft_wrap=True
    )
    for name, own in (("tokenizer", config.tokenizer), ("sit", config.sit)):
        size = plan[name]
        macs = f" ({size['gmacs']:.3f} GMACs)" if "gmacs" in size else ""
        trained = "imported" if own.imported is not None else f"{own.steps} steps of {own.batch_size}"
        console.print(
            f"{name:<10} {size['parameters'] / 1e6:.2f}M parameters, {size['gflops']:.3f} GFLOPs{macs} per image, "
            f"{trained}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{'images':<10} {plan['images']['train']} for training, {plan['images']['validation']} held out, "
        f"{config.sample.count} sampled",
        highlight=False,
    )
    whole, left = (
        duration(sum(stage[key] for stage in plan["stages"]) * 3600) for key in ("device_hours", "device_hours_left")
    )
    console.print(
        f"device time {whole}, of which {left} left, at {config.cluster.device_peak_tflops:g} TFLOP/s x "
        f"{config.cluster.assumed_mfu:g} MFU; source: {_source(config)}",
        highlight=False,
        soft_wrap=True,
    )
    for stage in plan["stages"]:
        if stage["tasks_per_gpu"] > 1 and config.cluster.device != "cpu":
            console.print(
                f"{stage['name']}: {stage['tasks_per_gpu']} tasks on a GPU at a time (cluster.gpu_shares)",
                highlight=False,
            )
        if step := stage["resumes_at"]:
            steps = section_of(config, stage["name"]).steps
            console.print(f"{stage['name']}: resumes at step {step} of {steps}", highlight=False)
        if begin := stage["goes_on_from"]:
            console.print(
                f"{stage['name']}: goes on from {begin['artifact']} at step {begin['step']}",
                highlight=False,
                soft_wrap=True,
            )
    for line in plan["warnings"]:
        console.print(f"[yellow]![/] {line}", highlight=False, soft_wrap=True)


def _source(config: Config) -> str:
    """The source, its number of files, and the age of its listing."""
    if config.data.format == "digits":
        return "scikit-learn's digits, built in"
    if config.data.uri is None:
        return "not configured (data.uri)"
    index = read_index(open_storage(config.root), config.data)
    if index is None:
        return f"{config.data.uri}, not listed yet (`python -m pipeline data index`)"
    return f"{config.data.uri}, {index.files} files, listed {duration(index.age_seconds)} ago"
