"""What a cluster has in pods before our chart comes: DNS, policies that hold, KubeRay's operator, Kueue.

Their objects are those of their own Go modules, with the image exchanged for the one that was built here."""

import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.images import PROGRAMS
from tests.cluster.network import QUEUE, run
from tests.cluster.programs import HERE, source

OPERATOR = "kuberay-operator"
_KUBERAY = "github.com/ray-project/kuberay/ray-operator"
Object = dict[str, Any]
Kubectl = Callable[..., str]


def start_dns(kubectl: Kubectl) -> None:
    kubectl("apply", "--filename", str(HERE / "manifests" / "dns.yaml"))
    kubectl("--namespace", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")


def enforce_policies(kubectl: Kubectl) -> None:
    """From here on a NetworkPolicy is more than an object."""
    module = source("network-policies", "sigs.k8s.io/kube-network-policies")
    objects = [made for made in yaml.safe_load_all((module / "install.yaml").read_text()) if made]
    arguments = ["--hostname-override=$(MY_NODE_NAME)", "--v=1", f"--nfqueue-id={QUEUE}", "--disable-nri"]
    for made in objects:
        if made["kind"] == "DaemonSet":
            pod = made["spec"]["template"]["spec"]
            del pod["volumes"]  # for NRI, which this containerd does not have
            (container,) = pod["containers"]
            del container["volumeMounts"]
            _run_built(container, ["/kube-network-policies"], arguments)
            container["securityContext"]["runAsUser"] = 0
            container["resources"] = {"requests": {"cpu": "10m", "memory": "50Mi"}}
    _apply(kubectl, objects)
    kubectl("--namespace", "kube-system", "rollout", "status", "daemonset/kube-network-policies", "--timeout=120s")


@contextmanager
def running_kueue(kubectl: Kubectl, is_own: bool) -> Iterator[None]:
    """As its own manifests have it, with webhooks and the certificates that it makes for them.

    In a cluster that is not our own by its published image.
    """
    module = source("kueue", "sigs.k8s.io/kueue")
    config = module / "config" / "default"
    objects = [made for made in yaml.safe_load_all(kubectl("kustomize", str(config))) if made]
    for made in objects:
        if made["kind"] == "Deployment":
            (container,) = made["spec"]["template"]["spec"]["containers"]
            if is_own:
                _run_built(container, ["/kueue"], container["args"])
            else:
                container["image"] = f"registry.k8s.io/kueue/kueue:v{_version(module)}"
            container["resources"] = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
    try:
        _apply(kubectl, objects)
        ready = ("rollout", "status", "deployment/kueue-controller-manager", "--timeout=180s")
        kubectl("--namespace", "kueue-system", *ready)
        yield
    finally:
        # Those first by which the API server asks Kueue: with nobody there no pod could be made, no namespace deleted.
        asked = ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "APIService")
        _delete(kubectl, [made for made in objects if made["kind"] in asked])
        _delete(kubectl, objects)


@contextmanager
def operator_repository(kubectl: Kubectl, helm: str, folder: Path) -> Iterator[str]:
    """The address of a Helm repository with charts of KubeRay's operator: of the version in use and the one before.

    The project's own charts are on the web alone. These have the CRDs, roles and the Deployment of their modules, so
    that the commands that install them can be run as they are written.
    """
    for program, module in ((OPERATOR, "kuberay"), (f"{OPERATOR}-former", "kuberay-former")):
        _write_operator_chart(kubectl, folder / OPERATOR, source(module, _KUBERAY), program)
        run(helm, "package", folder / OPERATOR, "--destination", folder)
        shutil.rmtree(folder / OPERATOR)
    run(helm, "repo", "index", folder)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def old_crds() -> list[Path]:
    """The CRDs of the newest KubeRay that is too old for us: its `authOptions` have no `secretName`."""
    return sorted((source("kuberay-too-old", _KUBERAY) / "config" / "crd" / "bases").glob("*.yaml"))


def former_version() -> str:
    """Of the KubeRay that came before the one in use."""
    return _version(source("kuberay-former", _KUBERAY))


def _version(module: Path) -> str:
    return module.name.rpartition("@v")[2]


def _write_operator_chart(kubectl: Kubectl, chart: Path, module: Path, program: str) -> None:
    (chart / "templates").mkdir(parents=True)
    about = {"apiVersion": "v2", "name": OPERATOR, "version": _version(module)}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    shutil.copytree(module / "config" / "crd" / "bases", chart / "crds")
    objects = [made for made in yaml.safe_load_all(kubectl("kustomize", str(module / "config" / "default"))) if made]
    for i, made in enumerate(one for one in objects if one["kind"] not in ("CustomResourceDefinition", "Namespace")):
        for place in (made["metadata"], *made.get("subjects", [])):
            if "namespace" in place:
                place["namespace"] = "{{ .Release.Namespace }}"
        if made["kind"] == "Deployment":
            (container,) = made["spec"]["template"]["spec"]["containers"]
            _run_built(container, [f"/{program}"], container["args"])
            container["readinessProbe"]["initialDelaySeconds"] = 1
        (chart / "templates" / f"{i}.yaml").write_text(yaml.safe_dump(made))


def _run_built(container: Object, command: list[str], arguments: list[str]) -> None:
    """Have it run one of the programs that were built here."""
    container.update(image=PROGRAMS, imagePullPolicy="Never", command=command, args=arguments)


def _apply(kubectl: Kubectl, objects: list[Object]) -> None:
    kubectl("apply", "--server-side", "--filename", "-", given=yaml.safe_dump_all(objects))


def _delete(kubectl: Kubectl, objects: list[Object]) -> None:
    words = ("--filename", "-", "--ignore-not-found", "--timeout=120s")
    kubectl("delete", *words, given=yaml.safe_dump_all(objects))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: a request is no news."""
