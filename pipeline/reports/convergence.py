"""`convergence PRESET PRESET ...`: the distance of samples over training steps, of several trainings in one figure.

It reads the artifacts of the stage `convergence`; nothing is sampled anew. Beside the figure are a table in Markdown
and every number as JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import ContractError
from pipeline.evaluation import arrival_of, common_goal, ratio
from pipeline.reports.folder import write_files
from pipeline.reports.trainings import Training

_COMPARED = {  # what makes distances comparable, and the fields that it is of
    "distance": "evaluate.network",
    "images": "convergence.images",
    "sampling": "sample",
    "data": "data",
    "reference": "evaluate.reference_split and evaluate.reference_images",
}


def check_comparable(trainings: Sequence[Training]) -> None:
    """ContractError unless all distances are of the same network, number of images, sampler and data."""
    first = trainings[0]
    for key, field in _COMPARED.items():
        for one in trainings[1:]:
            if one.about[key] != first.about[key]:
                theirs, own = _difference(first.about[key], one.about[key])
                raise ContractError(
                    f"{one.name} has {key} {own}, and {first.name} {theirs}",
                    f"Compare trainings with the same {field}.",
                )


def _difference(one: Any, other: Any) -> tuple[Any, Any]:
    """Both, or, of two mappings, the entries in which they differ, in words."""
    if not isinstance(one, dict):
        return one, other
    names = [name for name in one if one[name] != other.get(name)]
    told = [", ".join(f"{name} {mapping.get(name)}" for name in names) for mapping in (one, other)]
    return told[0], told[1]


def convergence_rows(trainings: Sequence[Training], goal: float | None) -> tuple[float, list[dict[str, Any]]]:
    """The distance that is asked for, and what each training takes to it, beside the first one.

    `goal` None: the smallest distance that every one surely reaches.
    """
    chosen = common_goal([one.curve for one in trainings]) if goal is None else goal
    return chosen, [_row(one, trainings[0], chosen) for one in trainings]


def _row(one: Training, first: Training, goal: float) -> dict[str, Any]:
    reached = arrival_of(one.curve, goal)
    row = {
        "name": one.name,
        "steps": reached.steps,
        "bound": reached.bound,
        "images": reached.steps * one.about["batch_size"],
        "epochs": one.epochs(reached.steps),
        "device_hours": one.device_hours(reached.steps),
        "last_distance": one.curve.points[-1].distance,
        "last_interval": one.curve.points[-1].around(),
    }
    if one is not first:
        row["times_as_fast"] = vars(ratio(first.curve, one.curve, goal))
    return row


def render_convergence(console: Console, trainings: Sequence[Training], goal: float | None) -> None:
    """Print what each training takes to the distance."""
    chosen, rows = convergence_rows(trainings, goal)
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"to {_distance(trainings)} {chosen:.4g}")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == _HEADINGS[0] else "right")
    for row in rows:
        table.add_row(*map(escape, _cells(row)))
    console.print(table)


_HEADINGS = ("training", "steps", "epochs", "device-hours", "times as fast", "last distance")


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["last_interval"]
    return [
        row["name"],
        f"{_sign(row['bound'])}{row['steps']:,.0f}",
        f"{row['epochs']:.3g}",
        f"{row['device_hours']:.3g}",
        faster(row.get("times_as_fast")),
        f"{row['last_distance']:.4g} ({low:.4g} to {high:.4g})",
    ]


def faster(found: dict[str, Any] | None) -> str:
    """How many times as fast, in words: `times_as_fast` of a row, or None for the training that is compared with."""
    if found is None:
        return "1"
    if found["value"] is None:
        return "not known"
    value = f"{_sign(found['bound'])}{found['value']:.2f}"
    if found["interval"] is None:
        return f"{value} (no interval: {found['missed']} of {found['resamples']} resamples miss it)"
    low, high = found["interval"]
    missed = f"; {found['missed']} of {found['resamples']} resamples miss it" if found["missed"] else ""
    return f"{value} ({low:.2f} to {high:.2f}{missed})"


def _sign(bound: str) -> str:
    return {"": "", "<=": "≤ ", ">=": "≥ "}[bound]


def _distance(trainings: Sequence[Training]) -> str:
    _, network = trainings[0].about["distance"].split("/")
    return f"a Frechet distance by {network} of"


def markdown(trainings: Sequence[Training], goal: float | None) -> str:
    """The same as a table in Markdown."""
    chosen, rows = convergence_rows(trainings, goal)
    lines = [
        f"To {_distance(trainings)} {chosen:.4g}, {trainings[0].about['images']:,} samples a point; intervals are "
        "95%, by a bootstrap over images.",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        "|---" * len(_HEADINGS) + "|",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def write_convergence(folder: Path, trainings: Sequence[Training], goal: float | None) -> list[Path]:
    """Write figure3.png, figure3.svg, convergence.md and convergence.json to the folder; returns the paths.

    StorageError if the folder cannot be written.
    """
    from pipeline.reports.curves import draw_curves

    chosen, rows = convergence_rows(trainings, goal)
    content = {
        "goal": chosen,
        "trainings": [
            {**row, **one.about, "points": [vars(point) for point in one.curve.points]}
            for row, one in zip(rows, trainings, strict=True)
        ],
    }
    files = {
        **draw_curves(trainings, chosen),
        "convergence.md": markdown(trainings, goal).encode(),
        "convergence.json": json.dumps(content, indent=1).encode(),
    }
    return write_files(folder, files)
