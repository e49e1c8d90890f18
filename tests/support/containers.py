"""Podman, and the image under test: built by it, or the one that DVAE_IMAGE names."""

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
NAME = "localhost/denoising-vae:test"
# What a pod of the chart has: a root that is read only, no capability, room in /tmp (where programs may be run, as in
# an emptyDir) and /dev/shm.
SEALED = [
    "--read-only", "--tmpfs", "/tmp:rw,exec,size=4g,mode=1777", "--shm-size", "2g",
    "--cap-drop", "all", "--security-opt", "no-new-privileges", "--network", "none",
]  # fmt: skip
_ENVIRONMENT = {**os.environ, "CONTAINERS_CONF": str(HERE / "containers.conf")}
_NETWORK_SETTINGS = ("cert", "extra-index-url", "index-url", "proxy", "retries", "timeout", "trusted-host")


@dataclass(frozen=True)
class Image:
    name: str
    git_sha: str | None  # that it was built from; None when it was built elsewhere


def missing() -> str | None:
    """Why these tests cannot run on this machine; None when they can."""
    lacking = [name for name in ("podman", "runc", "catatonit", "debootstrap") if shutil.which(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (on Debian: apt install podman runc catatonit debootstrap)"
    return "podman is run by root here" if os.geteuid() != 0 else None


def podman(*words: str, given: str | None = None, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run it to its end. With `ok`, an exit code other than 0 fails the test, with all that was said."""
    done = subprocess.run(
        ["podman", *words],
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        env=_ENVIRONMENT,
        check=False,
    )
    if ok and done.returncode != 0:
        raise AssertionError(
            f"podman {' '.join(words)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done


def base() -> str:
    """The image to start from, made where it is not there yet."""
    script = HERE / "base.sh"
    name = f"localhost/python-base:{hashlib.sha256(script.read_bytes()).hexdigest()[:12]}"
    if podman("image", "exists", name, ok=False).returncode != 0:
        made = subprocess.run([str(script), name], capture_output=True, text=True, env=_ENVIRONMENT, check=False)
        assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    return name


def build(name: str, source: Path, git_sha: str, folder: Path) -> None:
    """Build the image from the files below `source`; pip's settings are written to `folder`."""
    arguments = ["--build-arg", f"BASE={base()}", "--build-arg", f"GIT_SHA={git_sha}"]
    # On the machine's own network, so that a proxy that listens on its loopback is reached, too.
    podman("build", "--network", "host", "--layers", *arguments, *_pip_secrets(folder), "--tag", name, str(source))


def _pip_secrets(folder: Path) -> list[str]:
    """How pip reaches its index from here, as the Dockerfile takes it."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = {}
    for line in sorted(listed.stdout.splitlines(), reverse=True):  # global.x before :env:.x, which holds over it
        name, _, value = line.partition("=")
        settings[name.split(".", 1)[1]] = ast.literal_eval(value)
    secrets = []
    if "cert" in settings:
        secrets = ["--secret", f"id=ca.pem,src={settings['cert']}"]
        settings["cert"] = "/run/secrets/ca.pem"
    lines = [f"{name} = {' '.join(settings[name].split())}" for name in _NETWORK_SETTINGS if name in settings]
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    return [*secrets, "--secret", f"id=pip.conf,src={folder / 'pip.conf'}"]


def until(ready: Callable[[], bool], seconds: float, tell: Callable[[], str]) -> None:
    """Ask every half second until it is ready; past `seconds` the test fails with what `tell` says."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise AssertionError(tell())
        time.sleep(0.5)


def logs(name: str) -> str:
    told = podman("logs", name, ok=False)
    return told.stdout + told.stderr
