"""A real Kubernetes API server with KubeRay's CRDs, for tests: etcd and kube-apiserver, as envtest starts them.

There are no controllers, no kubelet and no scheduler: tests write statuses themselves, nothing is garbage-collected."""

import base64
import csv
import io
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes
import requests
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support import PROJECT
from tests.support.groups import free_port
from tests.support.secret_file import write_secret

USERS = ("admin", "alice", "bob")  # admin may do everything, the others nothing until a test binds a role to them
STRANGER = "stranger"  # has a kubeconfig, but a token that the server does not know
CRDS = ("ray.io_rayclusters.yaml", "ray.io_rayjobs.yaml", "ray.io_raycronjobs.yaml")
_UP_SECONDS = 120.0
# The program, and beside it one who kills them both when the pipe from the test process ends, however that one died.
# (Linux has a signal for this, but sends it at the end of the *thread* that started the program.)
_WITH_PARENT = 'exec 3<&0; { read _ <&3; kill -KILL 0; } & exec "$@" 3<&- </dev/null'


def binaries() -> Path | None:
    """The folder with etcd and kube-apiserver: KUBEBUILDER_ASSETS, else the repository's build/kubernetes."""
    folder = Path(os.environ.get("KUBEBUILDER_ASSETS") or PROJECT / "build" / "kubernetes")
    return folder if all((folder / name).exists() for name in ("etcd", "kube-apiserver")) else None


class ApiServer:
    """`stop` and `start` keep port, certificate, tokens and everything that is stored."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._etcd_url = f"http://127.0.0.1:{free_port()}"
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self._tokens = {user: secrets.token_hex(16) for user in (*USERS, STRANGER)}
        self._certificates = folder / "certificates"  # kube-apiserver signs its own, and keeps it there
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._write_identities()

    def kubeconfig(self, user: str = "admin") -> Path:
        path = self._folder / f"{user}.kubeconfig"
        authority = base64.b64encode((self._certificates / "apiserver.crt").read_bytes()).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self._tokens[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        write_secret(path, yaml.safe_dump(content))
        return path

    def client(self, user: str = "admin") -> kubernetes.client.ApiClient:
        return kubernetes.config.new_client_from_config(str(self.kubeconfig(user)))

    def namespace(self) -> str:
        """A fresh one; nothing removes it, since there is no namespace controller."""
        name = f"test-{secrets.token_hex(4)}"
        kubernetes.client.CoreV1Api(self.client()).create_namespace({"metadata": {"name": name}})
        return name

    def allow(self, user: str, namespace: str, verbs: list[str], group: str, resources: list[str]) -> None:
        """Bind a Role of one rule to this user, and wait until the server goes by it."""
        rbac = kubernetes.client.RbacAuthorizationV1Api(self.client())
        name = f"{user}-{secrets.token_hex(4)}"
        rule = {"apiGroups": [group], "resources": resources, "verbs": verbs}
        rbac.create_namespaced_role(namespace, {"metadata": {"name": name}, "rules": [rule]})
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }
        rbac.create_namespaced_role_binding(namespace, binding)
        reviews = kubernetes.client.AuthorizationV1Api(self.client(user))

        def allowed() -> bool:
            asked = {"namespace": namespace, "verb": verbs[-1], "group": group}
            asked["resource"], _, asked["subresource"] = resources[-1].partition("/")
            review = {"spec": {"resourceAttributes": asked}}
            answer: bool = reviews.create_self_subject_access_review(review).status.allowed
            return answer

        assert self._server is not None
        self._wait("kube-apiserver", self._server, allowed)

    def try_yaml(self, namespace: str, path: str, text: str) -> requests.Response:
        """Have the server read and validate an object's YAML, without keeping it. `path`: "apps/v1/deployments"."""
        group = "api" if path.startswith("v1/") else "apis"
        version, _, plural = path.rpartition("/")
        return requests.post(
            f"{self.url}/{group}/{version}/namespaces/{namespace}/{plural}",
            params={"dryRun": "All", "fieldValidation": "Strict"},
            data=text.encode(),
            headers={"Authorization": f"Bearer {self._tokens['admin']}", "Content-Type": "application/yaml"},
            verify=str(self._certificates / "apiserver.crt"),
            timeout=30,
        )

    def start(self) -> None:
        self._server = self._run(
            "kube-apiserver",
            f"--etcd-servers={self._etcd_url}",
            "--etcd-compaction-interval=0",  # only `compact` does
            "--watch-cache=false",  # so that watches see a compaction at once, not after minutes
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={self._certificates}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",  # no controller makes the accounts it asks for
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={self._folder / 'service-accounts.key'}",
            f"--service-account-key-file={self._folder / 'service-accounts.key'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",  # it refuses a loopback address
        )
        self._wait("kube-apiserver", self._server, self._ready)

    def stop(self) -> None:
        """As if its machine were gone: no goodbye to those who watch."""
        _kill(self._server)

    def compact(self) -> None:
        """Forget all history: a watch from a resourceVersion known before this call is answered 410 Gone."""
        for _ in range(2):  # the newest revision but one can still be watched from: make two that nobody knows
            answer = self._ask_etcd("put", key=base64.b64encode(b"compaction").decode(), value="")
        self._ask_etcd("compaction", revision=answer["header"]["revision"], physical=True)

    def _write_identities(self) -> None:
        rows = io.StringIO(newline="")
        for user in USERS:
            groups = ["system:masters"] if user == "admin" else []
            csv.writer(rows).writerow([self._tokens[user], user, user, *groups])
        write_secret(self._folder / "tokens.csv", rows.getvalue())
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_secret(self._folder / "service-accounts.key", pem)

    def _start_etcd(self) -> None:
        self._etcd = self._run(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            "--listen-peer-urls=http://127.0.0.1:0",
            "--unsafe-no-fsync",
        )
        self._wait("etcd", self._etcd, lambda: requests.get(f"{self._etcd_url}/readyz", timeout=5).ok)

    def _ask_etcd(self, what: str, **question: Any) -> dict[str, Any]:
        answer = requests.post(f"{self._etcd_url}/v3/kv/{what}", json=question, timeout=30)
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
        return content

    def _install(self, crds: Path) -> None:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        names = []
        for file in CRDS:
            definition = yaml.load((crds / file).read_bytes(), yaml.CSafeLoader)
            self._ask("POST", path, definition).raise_for_status()
            names.append(definition["metadata"]["name"])

        def established() -> bool:
            known = [self._ask("GET", f"{path}/{name}").json()["status"]["conditions"] or [] for name in names]
            return all(any(one["type"] == "Established" and one["status"] == "True" for one in each) for each in known)

        assert self._server is not None
        self._wait("kube-apiserver", self._server, established)

    def _ready(self) -> bool:
        return (self._certificates / "apiserver.crt").exists() and self._ask("GET", "/readyz").ok

    def _ask(self, method: str, path: str, content: Any = None) -> requests.Response:
        """As admin, without the client's models: it takes seconds to make them of a CRD."""
        headers = {"Authorization": f"Bearer {self._tokens['admin']}"}
        authority = str(self._certificates / "apiserver.crt")
        return requests.request(
            method, f"{self.url}{path}", json=content, headers=headers, verify=authority, timeout=30
        )

    def _run(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with open(self._folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                ["sh", "-c", _WITH_PARENT, name, str(self._programs / name), *arguments],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _wait(self, name: str, process: "subprocess.Popen[bytes]", up: Callable[[], bool]) -> None:
        end = time.monotonic() + _UP_SECONDS
        while time.monotonic() < end and process.poll() is None:
            try:
                if up():
                    return
            except requests.RequestException:  # not listening yet
                pass
            time.sleep(0.2)
        raise AssertionError(f"{name} did not come up: {(self._folder / f'{name}.log').read_text()[-3000:]}")


@contextmanager
def running_api_server(programs: Path, crds: Path, folder: Path) -> Iterator[ApiServer]:
    server = ApiServer(programs, folder)
    try:
        server._start_etcd()
        server.start()
        server._install(crds)
        yield server
    finally:
        _kill(server._server)
        _kill(server._etcd)


def _kill(process: "subprocess.Popen[bytes] | None") -> None:
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
