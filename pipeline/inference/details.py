"""What a generator's artifact says of itself, as the networks of today take it."""

from typing import Any

from pipeline.artifacts import Manifest


def sit_details(manifest: Manifest) -> dict[str, Any]:
    """The details of a train-sit artifact, with those that early ones lack: 1000 t embedded, the linear path."""
    details = manifest.details
    return {"path": "linear", **details, "network": {"time_scale": 1000.0, **details["network"]}}
