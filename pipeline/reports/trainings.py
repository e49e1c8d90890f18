"""A training's curve, as the stage `convergence` has left it, and what its steps cost."""

import json
from typing import Any, NamedTuple

from pipeline.artifacts import Manifest, read_checked
from pipeline.errors import ContractError
from pipeline.evaluation import Curve, Point
from pipeline.storage import Storage


def curve_file(network: str) -> str:
    """The file in a convergence artifact with the curve by this network."""
    return f"curve-{network}.json"


class Training(NamedTuple):
    """A preset's curve, and what it cost."""

    name: str
    curve: Curve
    about: dict[str, Any]
    """As the curve's file, but for its points."""

    def epochs(self, steps: float) -> float:
        return float(steps * self.about["batch_size"] / self.about["training_images"])

    def device_hours(self, steps: float) -> float:
        return float(steps * self.about["device_seconds_per_step"] / 3600)


def read_training(storage: Storage, manifest: Manifest, name: str, network: str | None = None) -> Training:
    """The curve of a convergence artifact by one of its networks, the gate's for None.

    ContractError if it has no such curve, or its file is broken.
    """
    networks = manifest.details["networks"]
    if network is not None and network not in networks:
        raise ContractError(f"{name} has curves by {', '.join(networks)}, not by {network}", "Give one of these.")
    about = json.loads(read_checked(storage, manifest, curve_file(network or networks[0])))
    points = [Point(one["step"], one["distance"], tuple(one["resampled"])) for one in about.pop("points")]
    return Training(name, Curve(tuple(points)), about)
