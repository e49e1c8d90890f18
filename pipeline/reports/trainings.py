"""A training's curve, as the stage `convergence` has left it, and what its steps cost."""

import json
from typing import Any, NamedTuple

from pipeline.artifacts import Manifest, read_checked
from pipeline.evaluation import Curve, Point
from pipeline.storage import Storage

CURVE = "curve.json"


class Training(NamedTuple):
    """A preset's curve, and what it cost."""

    name: str
    curve: Curve
    about: dict[str, Any]
    """As `curve.json`, but for its points."""

    def epochs(self, steps: float) -> float:
        return float(steps * self.about["batch_size"] / self.about["training_images"])

    def device_hours(self, steps: float) -> float:
        return float(steps * self.about["device_seconds_per_step"] / 3600)


def read_training(storage: Storage, manifest: Manifest, name: str) -> Training:
    """The curve of a convergence artifact. ContractError if its file is broken."""
    about = json.loads(read_checked(storage, manifest, CURVE))
    points = [Point(one["step"], one["distance"], tuple(one["resampled"])) for one in about.pop("points")]
    return Training(name, Curve(tuple(points)), about)
