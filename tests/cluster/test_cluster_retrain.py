"""The CronJob: it fires, finds nothing to do and says so; after a change of the config it trains and promotes."""

import json
from typing import Any

import pytest

from pipeline.tracking.registry import champion
from tests.cluster.installation import Installation

pytestmark = pytest.mark.slow
MODEL = "nightly"


def config(steps: int) -> dict[str, object]:
    """A model of its own on the quickstart's tokenizer and latents."""
    gate = {"minimum": 0.0}
    return {"extends": "quickstart", "sit": {"steps": steps}, "register": {"name": MODEL, "gate": gate}}


def change(place: Installation, **retrain: object) -> None:
    place.write_values(retrain=retrain)
    place.apply()


def by_hand(place: Installation) -> str:
    """By the document's commands; what the job says."""
    told = place.bash(place.document("Retraining", "kubectl -n dvae create job retrain-now"))
    place.kubectl("wait", "job/retrain-now", "--for=condition=Complete", "--timeout=60s")
    return told


def test_nothing_to_do_by_schedule(place: Installation, quickstart: dict[str, str]):
    change(place, preset="quickstart", schedule="* * * * *", suspend=False)
    jobs: list[dict[str, Any]] = []

    def has_fired() -> bool:
        listed = json.loads(place.kubectl("get", "jobs", "--output=json"))["items"]
        fired = [job for job in listed if owner(job) == "CronJob"]
        jobs[:] = [job for job in fired if job["status"].get("succeeded")]
        return bool(jobs)

    try:
        place.wait(has_fired, "the CronJob has not fired", 240)
    finally:
        change(place, preset="quickstart")
    assert "Nothing to do" in place.kubectl("logs", f"job/{jobs[0]['metadata']['name']}")


def owner(made: dict[str, Any]) -> str:
    """What kind of object has made this one."""
    return str(made["metadata"].get("ownerReferences", [{}])[0].get("kind"))


def test_a_change_of_the_config_trains_and_promotes(place: Installation, quickstart: dict[str, str]):
    uri = place.environment["MLFLOW_TRACKING_URI"]
    change(place, config=config(60), preset="")
    first = by_hand(place)
    assert champion(uri, MODEL) == "1", first
    change(place, config=config(300), preset="")
    second = by_hand(place)
    assert champion(uri, MODEL) == "2", second
    assert "champion" in second
