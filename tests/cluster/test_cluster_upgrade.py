"""A new image while something runs, the way back, and the end: nothing is lost.

The last file by its name: what it leaves installed is no longer what the others expect."""

import base64
import re

import pytest
import requests

from pipeline.tracking.registry import champion
from tests.cluster.addons import former_version
from tests.cluster.installation import DASHBOARD, HEAD, RELEASE, ROOT, Installation
from tests.cluster.work import disturbed, objects

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
        place.upgrade()

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
    before, version = objects("trial/"), champion(uri, "denoising-vae")
    assert version is not None
    place.bash(place.document("Uninstall"))
    assert before <= objects("trial/")
    secrets = place.kubectl("get", "secrets", "--output=name").split()
    assert {f"secret/{name}" for name in ("mlflow-database", "mlflow-users", "ray-token", "s3-keys")} <= set(secrets)
    place.bash(place.document("4. Chart"))
    place.wait_until_reached()
    assert champion(uri, "denoising-vae") == version
    planned = place.bash('python -m pipeline plan quickstart --root "$ROOT"')
    assert "new" not in planned.split()
    assert RELEASE in place.bash("helm list --namespace dvae --short")


def test_kuberay_itself_is_upgraded(place: Installation):
    """From the version before: the new operator takes over what it finds, and restarts no pod."""
    upgrade = place.document("Upgrade", "helm repo update kuberay")
    (version,) = set(re.findall(r"--version (\S+)", upgrade))
    place.bash(upgrade.replace(version, former_version()))
    before = head_taken_over(place, former_version())
    place.bash(upgrade)
    assert head_taken_over(place, version) == before


def head_taken_over(place: Installation, version: str) -> str:
    """The uid of the head, once KubeRay of that version has looked at it: it notes itself on the pod."""

    def is_noted() -> bool:
        heads = place.pods(HEAD)
        return bool(heads) and heads[0]["metadata"]["annotations"].get("ray.io/kuberay-version") == f"v{version}"

    place.wait(is_noted, f"KubeRay {version} has not looked at the head")
    (head,) = place.pods(HEAD)
    return str(head["metadata"]["uid"])


def test_a_token_is_rotated(place: Installation):
    old = place.environment["RAY_AUTH_TOKEN"]
    place.bash(place.document("Rotate secrets", "kubectl -n dvae create secret generic ray-token-2"))
    place.write_values(auth={"existingSecret": "ray-token-2"})
    place.bash(place.document("Rotate secrets", "# First put"))
    encoded = place.kubectl("get", "secret", "ray-token-2", "--output=jsonpath={.data.auth_token}")
    new = base64.b64decode(encoded).decode()

    def is_taken() -> bool:
        return answer(new) == 200 and answer(old) in (401, 403)

    place.wait(is_taken, "the dashboard does not go by the new token")


def answer(token: str) -> int:
    try:
        asked = requests.get(f"{DASHBOARD}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    except requests.RequestException:
        return 0
    return asked.status_code
