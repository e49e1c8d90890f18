"""A Kubernetes of one node on this machine: each program a process of its own with a log of its own.

etcd, kube-apiserver, kube-controller-manager, kube-scheduler, containerd, kubelet, kube-proxy. What runs in pods (DNS,
operators) is `addons`' to bring. Containers outlive a kubelet or containerd that is killed, as they do elsewhere."""

import fcntl
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import requests
import yaml

from tests.cluster import network
from tests.cluster.identities import Identities
from tests.cluster.network import ADDRESS, DNS, PODS, SERVICES, run
from tests.cluster.programs import CACHE
from tests.support.groups import Group

PAUSE = "localhost/cluster-pause:test"  # the image that holds a pod's namespaces
NAME = "node"
_STORE = CACHE / "containerd"  # images stay from one time to the next
_MARK = CACHE / "node"  # locked while one is up; names the folder of one that was killed
_OTHERS = ("kubelet", "kube-proxy", "k3s", "k3s-server", "rke2")
_OTHERS_NAMESPACES = "namespaces-of-others"  # a file in `folder`: the network namespaces that were there before
_UP_SECONDS = 120.0


class Node:
    """`begin`, `start`, images, `join`; `stop` leaves nothing but the images and `folder` with the logs."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.folder = folder
        self.containerd = folder / "containerd.sock"
        self.kubeconfig = folder / "admin.kubeconfig"
        self._programs = programs
        self._identities = Identities(folder)
        self._certificates = folder / "certificates"  # the API server signs its own, and keeps it there
        self._running: dict[str, Group] = {}

    def begin(self) -> None:
        """Take the machine. AssertionError, with nothing touched, where another Kubernetes has it."""
        _MARK.parent.mkdir(parents=True, exist_ok=True)
        self._mark = open(_MARK, "a+")  # noqa: SIM115  held until `stop`
        try:
            fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AssertionError("a cluster of these tests runs on this machine already") from None
        self._clear_after_former()

    def start(self) -> None:
        """Everything but what takes pods."""
        network.add_address()
        self._identities.write()
        self._start_control_plane()
        self._start_containerd()

    def join(self) -> None:
        """Begin to take pods; the images that the node itself needs have to be there by now."""
        self.start_program("kubelet")
        self.start_program("kube-proxy")
        network.queue_packets()
        self.wait(self._is_ready, "the node is not ready")

    def stop(self) -> None:
        for name in ("kubelet", "kube-proxy", "kube-scheduler", "kube-controller-manager", "kube-apiserver"):
            self.stop_program(name)
        if "containerd" in self._running:
            self._forget_containers()
        for name in ("containerd", "etcd"):
            self.stop_program(name)
        _unmount(self.folder)
        network.clear(_others_namespaces(self.folder))
        self._mark.truncate(0)
        self._mark.close()

    def start_program(self, name: str) -> None:
        log = self.folder / f"{name}.log"
        self._running[name] = Group(self._command(name), log)

    def stop_program(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        if name in self._running:
            self._running.pop(name).end(number)

    def ctr(self, *words: object) -> str:
        return run("ctr", "--address", self.containerd, "--namespace", "k8s.io", *words)

    def wait(self, ready: Callable[[], bool], otherwise: str, seconds: float = _UP_SECONDS) -> None:
        """Ask until it is so. AssertionError when a program of the node has ended, or time is up."""
        end = time.monotonic() + seconds
        while not ready():
            for name, group in self._running.items():
                if group.process.poll() is not None:
                    raise AssertionError(f"{name} has ended: {group.log.read_text(errors='replace')[-2000:]}")
            if time.monotonic() > end:
                raise AssertionError(f"{otherwise} after {seconds:.0f} s; logs are in {self.folder}")
            time.sleep(0.3)

    def _clear_after_former(self) -> None:
        """Away with what is left of one that was killed; but not with somebody else's Kubernetes and its rules."""
        self._mark.seek(0)
        former = self._mark.read().strip()
        if former:
            _kill_shims(Path(former))
            _unmount(Path(former))
            network.clear(_others_namespaces(Path(former)))
        found = [one.info["name"] for one in psutil.process_iter(["name"]) if one.info["name"] in _OTHERS]
        assert not found, f"another Kubernetes runs on this machine ({', '.join(found)}): it would be damaged"
        (self.folder / _OTHERS_NAMESPACES).write_text("\n".join(network.namespaces()))
        self._mark.truncate(0)
        self._mark.write(str(self.folder))
        self._mark.flush()

    def _start_control_plane(self) -> None:
        self.start_program("etcd")
        self.start_program("kube-apiserver")
        self.wait(self._api_server_is_ready, "kube-apiserver does not answer")
        for name in ("admin", "kubelet", "proxy"):
            self._identities.kubeconfig(name, f"https://{ADDRESS}:6443", self._certificates / "apiserver.crt")
        self.start_program("kube-controller-manager")
        self.start_program("kube-scheduler")

    def _start_containerd(self) -> None:
        network.write_plugins(self.folder / "cni", self.folder / "leases")
        (self.folder / "containerd.toml").write_text(self._containerd_settings())
        (self.folder / "kubelet.yaml").write_text(yaml.safe_dump(self._kubelet_settings()))
        (self.folder / "kube-proxy.yaml").write_text(yaml.safe_dump(self._proxy_settings()))
        (self.folder / "resolv.conf").write_text("")
        self.start_program("containerd")
        self.wait(self._containerd_answers, "containerd does not answer")
        if self.ctr("containers", "list", "--quiet").strip():  # of a node that was killed
            self._forget_containers()
            self.stop_program("containerd")
            self.start_program("containerd")
            self.wait(self._containerd_answers, "containerd does not answer")

    def _forget_containers(self) -> None:
        _kill_shims(self.folder)
        for name in self.ctr("tasks", "list", "--quiet").split():
            subprocess.run(
                ["ctr", "--address", self.containerd, "--namespace", "k8s.io", "tasks", "delete", "--force", name],
                capture_output=True, check=False,
            )  # fmt: skip
        for name in self.ctr("containers", "list", "--quiet").split():
            self.ctr("containers", "delete", name)

    def _containerd_answers(self) -> bool:
        asked = ["ctr", "--address", str(self.containerd), "version"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def _api_server_is_ready(self) -> bool:
        certificate = self._certificates / "apiserver.crt"
        if not certificate.exists():
            return False
        try:  # everybody may ask this
            return requests.get(f"https://{ADDRESS}:6443/readyz", verify=str(certificate), timeout=5).ok
        except (requests.RequestException, OSError):  # not listening yet, or the certificate is half written
            return False

    def _is_ready(self) -> bool:
        asked = [str(self._programs / "kubectl"), "--kubeconfig", str(self.kubeconfig), "get", "node", NAME]
        jsonpath = '--output=jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        done = subprocess.run([*asked, jsonpath], capture_output=True, text=True, check=False)
        return done.stdout == "True"

    def _command(self, name: str) -> list[str]:
        folder, own = self.folder, str(self._programs / name)
        if name == "containerd":
            return ["containerd", "--config", str(folder / "containerd.toml")]
        if name == "etcd":
            client, peer = "http://127.0.0.1:23790", "http://127.0.0.1:0"
            return [own, f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={client}", "--unsafe-no-fsync",
                    f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"]  # fmt: skip
        if name == "kube-apiserver":
            who = self._identities
            return [
                own, "--etcd-servers=http://127.0.0.1:23790", f"--bind-address={ADDRESS}", "--secure-port=6443",
                f"--advertise-address={ADDRESS}", f"--cert-dir={self._certificates}",
                f"--token-auth-file={who.tokens}", "--authorization-mode=Node,RBAC", "--allow-privileged=true",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-signing-key-file={who.service_accounts}",
                f"--service-account-key-file={who.service_accounts}", f"--service-cluster-ip-range={SERVICES}",
                "--kubelet-preferred-address-types=InternalIP", f"--kubelet-client-certificate={who.client}",
                f"--kubelet-client-key={who.client_key}",
            ]  # fmt: skip
        if name == "kube-controller-manager":
            return [
                own, f"--kubeconfig={self.kubeconfig}", "--use-service-account-credentials", "--leader-elect=false",
                f"--service-account-private-key-file={self._identities.service_accounts}", "--bind-address=127.0.0.1",
                f"--root-ca-file={self._certificates / 'apiserver.crt'}",
            ]  # fmt: skip
        if name == "kube-scheduler":
            return [own, f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--bind-address=127.0.0.1"]
        if name == "kubelet":
            return [
                own, f"--config={folder / 'kubelet.yaml'}", f"--kubeconfig={folder / 'kubelet.kubeconfig'}",
                f"--hostname-override={NAME}", f"--node-ip={ADDRESS}", f"--root-dir={folder / 'kubelet'}",
                f"--cert-dir={folder / 'kubelet' / 'pki'}",
            ]  # fmt: skip
        return [own, f"--config={folder / 'kube-proxy.yaml'}", f"--hostname-override={NAME}"]

    def _containerd_settings(self) -> str:
        unused = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in ("aufs", "btrfs", "devmapper", "zfs"))
        return f"""
version = 2
root = "{_STORE}"
state = "{self.folder / "containers"}"
disabled_plugins = [{unused}]
[grpc]
  address = "{self.containerd}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true  # where this machine is a container itself, it may not go below its own
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self.folder / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""

    def _kubelet_settings(self) -> dict[str, object]:
        little = {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self._identities.authority)},
            },
            "authorization": {"mode": "AlwaysAllow"},  # those with the API server's certificate
            "cgroupDriver": "cgroupfs",
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{self.containerd}",
            # Limits of CPU are what Ray counts; on two cores they need not slow everything down as well.
            "cpuCFSQuota": False,
            "evictionHard": {**little, "nodefs.inodesFree": "1%", "imagefs.inodesFree": "1%"},
            "failCgroupV1": False,
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,  # never: nobody could pull them again
            "podLogsDir": str(self.folder / "pods"),
            "resolvConf": str(self.folder / "resolv.conf"),
        }

    def _proxy_settings(self) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.folder / "proxy.kubeconfig")},
            "mode": "iptables",
            "clusterCIDR": PODS,
            # Leave the kernel's settings as they are: a container may not change them.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }


def _kill_shims(folder: Path) -> None:
    """End the containers of the node in this folder; they outlive containerd."""
    for shim in psutil.process_iter(["name", "cmdline"]):
        words = shim.info["cmdline"] or []
        if "containerd-shim" in " ".join(words[:1]) and str(folder / "containerd.sock") in words:
            for process in [*shim.children(recursive=True), shim]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _others_namespaces(folder: Path) -> set[str]:
    """Those that a node with its files there must leave alone: all, where its files have gone."""
    file = folder / _OTHERS_NAMESPACES
    return set(file.read_text().split()) if file.exists() else network.namespaces()


def _unmount(folder: Path) -> None:
    """Volumes of pods and roots of containers."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    shutil.rmtree(folder / "kubelet", ignore_errors=True)
    shutil.rmtree(folder / "containers", ignore_errors=True)
