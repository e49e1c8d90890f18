"""The programs of a whole cluster: built from the pinned Go modules below `go/`, and kept outside of the tree."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "denoising-vae-cluster"
TOOLS = ("helm", "kubectl")  # what a platform engineer has
NODE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
IN_PODS = ("coredns", "kuberay-operator", "kuberay-operator-former", "kueue", "kube-network-policies")
_FROM_DEBIAN = {
    "containerd": "containerd", "ctr": "containerd", "runc": "runc", "iptables": "iptables", "ip": "iproute2",
    "conntrack": "conntrack", "podman": "podman", "catatonit": "catatonit", "debootstrap": "debootstrap",
}  # fmt: skip
PLUGINS = Path("/usr/lib/cni")  # where Debian's containernetworking-plugins are


def missing() -> str | None:
    """Why no cluster can be run on this machine; None when one can."""
    if os.geteuid() != 0:
        return "a node is run by root"
    if shutil.which("go") is None:
        return "not installed: go (1.25 or newer)"
    packages = {package for program, package in _FROM_DEBIAN.items() if shutil.which(program) is None}
    if not (PLUGINS / "ptp").exists():
        packages.add("containernetworking-plugins")
    return f"not installed: apt install {' '.join(sorted(packages))}" if packages else None


def build() -> Path:
    """The folder with all of them. Minutes the first time, seconds afterwards."""
    folder = CACHE / "programs"
    done = subprocess.run(
        [PROJECT / ".ci" / "kubernetes-binaries", folder, *TOOLS, *NODE, *IN_PODS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def source(module: str, path: str) -> Path:
    """Where the files of the Go module `path` lie, in the version that `go/module` pins."""
    listed = subprocess.run(
        ["go", "mod", "download", "-json", path], cwd=HERE / "go" / module, capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(listed.stdout)
    return Path(told["Dir"])
