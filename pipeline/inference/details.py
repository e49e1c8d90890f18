"""What a generator's artifact says of itself, as the networks of today take it, and which file has which weights."""

from collections.abc import Sequence
from typing import Any

from pipeline.artifacts import Manifest
from pipeline.errors import ContractError


def sit_details(manifest: Manifest) -> dict[str, Any]:
    """The details of a train-sit artifact, with those that early ones lack: 1000 t embedded, the linear path."""
    details = manifest.details
    return {"path": "linear", **details, "network": {"time_scale": 1000.0, **details["network"]}}


def weights_names(place: str, decays: Sequence[float]) -> dict[float, str]:
    """The files of a trainer's averages by decay: `PLACE.safetensors` of the first, `PLACE-ema0.999.safetensors`."""
    first, *more = decays
    return {first: f"{place}.safetensors", **{decay: f"{place}-ema{decay}.safetensors" for decay in more}}


def milestone_place(step: int) -> str:
    """The place, as of `weights_names`, of the averages at a milestone."""
    return f"milestones/{step:06d}"


def sit_weights(manifest: Manifest, decay: float | None, milestone: int | None = None) -> str:
    """The file of a train-sit artifact with the average of this decay, the first for None, at the end or a milestone.

    ContractError if it has no such average.
    """
    place = "weights" if milestone is None else milestone_place(milestone)
    averages = manifest.details.get("averages", [])  # not of those that were made before there were several
    names = weights_names(place, averages) if averages else {}
    if decay is None:
        return f"{place}.safetensors"
    if decay not in names:
        kept = f"has the averages {', '.join(map(str, averages))} alone" if averages else "has one average alone"
        raise ContractError(f"{manifest.name} {kept}, not {decay:g}", "Set sample.ema_decay=null, or train with it.")
    return names[decay]


def device_seconds(manifest: Manifest) -> float:
    """What an artifact took: a trainer's over all steps and devices; another's, or an early one's, on one device."""
    return float(manifest.details.get("device_seconds", manifest.seconds))
