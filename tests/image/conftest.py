"""The image that the tests here run: the one that DVAE_IMAGE names, else one built from this checkout, and kept."""

import os
import subprocess

import pytest

from tests.support.containers import NAME, PROJECT, Image, build, missing


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    if reason := missing():
        pytest.skip(reason)
    if "DVAE_IMAGE" in os.environ:
        return Image(os.environ["DVAE_IMAGE"], None)
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True)
    git_sha = asked.stdout.strip()
    build(NAME, PROJECT, git_sha, tmp_path_factory.mktemp("build"))
    return Image(NAME, git_sha)
