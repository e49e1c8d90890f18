"""A new image while something runs, the way back, and the end: nothing is lost.

The last file by its name: after its last test nothing is installed any more."""

import pytest
from installation import RELEASE, ROOT, Installation
from work import HEAD, disturbed, objects

from pipeline.registry import champion

pytestmark = pytest.mark.slow


def image_of_head(place: Installation) -> str:
    heads = place.pods(HEAD)
    return str(heads[-1]["spec"]["containers"][0]["image"]) if heads else ""


def test_an_upgrade_while_something_trains(place: Installation, undisturbed: dict[str, str]):
    new = place.cluster.next_image
    if new is None:
        pytest.skip("DVAE_CLUSTER_NEXT_IMAGE is not set: there is nothing to upgrade to")
    repository, _, tag = new.rpartition(":")

    def upgrade() -> None:
        place.write_values(image={"repository": repository, "tag": tag})
        place.bash(place.document("Upgrade", "helm upgrade denoising-vae"))

    assert disturbed(place, f"{ROOT}-upgraded", upgrade) == undisturbed
    assert image_of_head(place) == new


def test_back_while_something_trains(place: Installation, undisturbed: dict[str, str]):
    def roll_back() -> None:
        place.bash(place.document("Roll back"))
        place.wait(lambda: image_of_head(place) == place.cluster.image, "the head is not the old one again")

    assert disturbed(place, f"{ROOT}-rolled-back", roll_back) == undisturbed
    place.write_values()


def test_what_stays_when_it_is_uninstalled(place: Installation, quickstart: dict[str, str]):
    place.wait_until_reached()
    uri = place.environment["MLFLOW_TRACKING_URI"]
    before, version = objects(place, "trial/"), champion(uri, "denoising-vae")
    assert version is not None
    place.bash(place.document("Uninstall"))
    place.wait(lambda: not place.pods(""), "pods stay")
    assert before <= objects(place, "trial/")
    secrets = place.kubectl("get", "secrets", "--output=name").split()
    assert {f"secret/{name}" for name in ("mlflow-database", "mlflow-users", "ray-token", "s3-keys")} <= set(secrets)
    place.bash(place.document("4. Chart"))
    place.wait_until_reached()
    assert champion(uri, "denoising-vae") == version
    planned = place.bash('python -m pipeline plan quickstart --root "$ROOT"')
    assert "new" not in planned.split()
    assert RELEASE in place.bash("helm list --namespace dvae --short")
