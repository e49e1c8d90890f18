"""Who is who in the cluster: tokens by which its programs know one another, a certificate for the kubelet's door."""

import base64
import csv
import datetime
import io
import secrets
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.support.secret_file import write_secret

USERS = {  # name of the kubeconfig -> user, groups
    "admin": ("admin", ["system:masters"]),
    "kubelet": ("system:node:node", ["system:nodes"]),
    "proxy": ("system:kube-proxy", []),
}


class Identities:
    """Files in `folder`; the tokens are new ones each time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = folder / "tokens.csv"
        self.service_accounts = folder / "service-accounts.key"
        self.authority = folder / "kubelet-clients.crt"  # whom the kubelet lets in
        self.client = folder / "apiserver-client.crt"
        self.client_key = folder / "apiserver-client.key"
        self._known = {name: secrets.token_hex(16) for name in USERS}

    def write(self) -> None:
        rows = io.StringIO(newline="")
        for name, (user, groups) in USERS.items():
            csv.writer(rows).writerow([self._known[name], user, user, ",".join(groups)])
        write_secret(self.tokens, rows.getvalue())
        write_secret(self.service_accounts, _pem(_key()))
        self._write_client()

    def kubeconfig(self, name: str, server: str, certificate: Path) -> Path:
        """For one of USERS, at an API server that has this certificate."""
        path = self.folder / f"{name}.kubeconfig"
        authority = base64.b64encode(certificate.read_bytes()).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": name, "user": {"token": self._known[name]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        write_secret(path, yaml.safe_dump(content))
        return path

    def _write_client(self) -> None:
        """The API server's certificate as the kubelet's client: `kubectl exec`, `logs` and `port-forward` go by it."""
        authority, client = _key(), _key()
        issuer = _name("kubelet-clients")
        now = datetime.datetime.now(datetime.UTC)

        def signed(subject: x509.Name, key: rsa.RSAPrivateKey, is_authority: bool) -> bytes:
            made = (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(issuer)
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(hours=1))
                .not_valid_after(now + datetime.timedelta(days=30))
                .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            )
            return made.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

        self.authority.write_bytes(signed(issuer, authority, True))
        self.client.write_bytes(signed(_name("kube-apiserver"), client, False))
        write_secret(self.client_key, _pem(client))


def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
