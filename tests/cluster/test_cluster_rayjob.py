"""A short-lived cluster for one stage: made, waited for, its job's exit code handed on, taken away."""

from tests.cluster.installation import RELEASE, ROOT, Installation
from tests.cluster.work import done, ended, objects, rayjob, start


def test_it_comes_works_and_goes(place: Installation):
    before = logged()
    told = done(place, rayjob(f"{ROOT}-rayjob", "stage", "prepare", "quickstart"))
    assert "✓ prepare" in told
    nothing_is_left(place)
    assert objects("trial-rayjob/prepare/")
    assert len(logged() - before - {RELEASE}) == 1


def test_the_jobs_exit_code_is_its_own(place: Installation):
    """A stage that fails: its inputs are not there."""
    code, out, error = ended(start(place, rayjob(f"{ROOT}-nothing", "stage", "encode", "quickstart")))
    assert code == 1, out + error
    assert "encode needs prepare" in out + error
    place.kubectl("delete", "rayjobs", "--all")
    nothing_is_left(place)


def logged() -> set[str]:
    """The clusters of which Ray's logs have been kept: they outlive the pods."""
    return {name.split("/")[2] for name in objects("trial/.logs/")}


def nothing_is_left(place: Installation) -> None:
    place.wait(lambda: place.kubectl("get", "rayjobs", "--output=name") == "", "a RayJob stays")
    here = f"raycluster.ray.io/{RELEASE}\n"
    place.wait(lambda: place.kubectl("get", "rayclusters", "--output=name") == here, "a RayCluster stays")
    # Its pods outlive it: their preStop hooks upload Ray's logs first.
    pods = ("get", "pods", "--selector", f"ray.io/cluster,ray.io/cluster!={RELEASE}", "--output=name")
    place.wait(lambda: place.kubectl(*pods) == "", "a pod of a RayCluster stays")
