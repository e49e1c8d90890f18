"""A local Ray's token is in its environment. Ray would else write one into the home folder, for everybody to read."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import PROJECT

# In a process of its own: Ray reads its environment when it is imported, and looks for a token at each start.
_STARTS = """
import os, sys
from pipeline import cluster

CASES = [{}, {"RAY_AUTH_TOKEN": ""}, {"RAY_AUTH_TOKEN_PATH": ""}, {"RAY_AUTH_TOKEN_PATH": sys.argv[1]}]
for case in CASES:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
    os.environ.update(case)
    cluster.set_environment()
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ensure_token_if_auth_enabled()  # as `ray.init` does
    print(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
"""


def test_no_token_is_left_in_the_home_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", _STARTS, str(tmp_path / "nothing")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["True"] * 4, done.stderr[-1000:]
    assert not list(tmp_path.rglob("*token*"))
