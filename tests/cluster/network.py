"""What of the machine's network the node takes, and gives back: an address, the packets' way past the policies.

Pods are wired by CNI's `ptp`: every packet between two of them is routed, so that one chain sees it. There is no way
from a pod to the world outside."""

import json
import re
import subprocess
from pathlib import Path

ADDRESS = "10.200.0.1"  # of the node: the API server's, and that of servers beside the cluster
METADATA = "169.254.169.254"  # where clouds keep a node's credentials; here whoever listens may pretend to
PODS, SERVICES, DNS = "10.244.0.0/24", "10.96.0.0/16", "10.96.0.10"
QUEUE = 98  # where kube-network-policies takes packets from
_DEVICE = "node0"
_NAMESPACES = Path("/var/run/netns")
_CHAIN = "DVAE-POLICIES"


def run(*command: object, given: str | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr[-2000:]}"
    return done.stdout


def add_address() -> None:
    """The node's, and a metadata service's; on a bridge without ports, since not every kernel has `dummy` devices."""
    run("ip", "link", "add", _DEVICE, "type", "bridge")
    run("ip", "address", "add", f"{ADDRESS}/32", "dev", _DEVICE)
    run("ip", "address", "add", f"{METADATA}/32", "dev", _DEVICE)
    run("ip", "link", "set", _DEVICE, "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def queue_packets() -> None:
    """Have each first packet from or to a pod judged, to servers on the node as well.

    kube-network-policies would lay its own rules by nftables' `queue`, which kernels built without NFT_QUEUE refuse; it
    then goes on without them and judges what comes by its queue, from wherever. After the address of a service was
    replaced by a pod's, so not before FORWARD and INPUT. What the node itself sends to its pods is not asked. As long
    as nobody judges, everything passes.
    """
    run("iptables", "-t", "mangle", "-N", _CHAIN)
    for way in ("-s", "-d"):
        new = ("-m", "conntrack", "--ctstate", "NEW")
        run(
            "iptables",
            "-t",
            "mangle",
            "-A",
            _CHAIN,
            way,
            PODS,
            *new,
            "-j",
            "NFQUEUE",
            "--queue-num",
            QUEUE,
            "--queue-bypass",
        )
    for hook in ("FORWARD", "INPUT"):
        run("iptables", "-t", "mangle", "-I", hook, "-j", _CHAIN)


def write_plugins(folder: Path, leases: Path) -> None:
    """CNI's configuration."""
    folder.mkdir()
    ranges = {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [{"type": "ptp", "ipMasq": False, "ipam": {**ranges, "dataDir": str(leases)}}]
    content = {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}
    (folder / "10-pods.conflist").write_text(json.dumps(content))


def namespaces() -> set[str]:
    """Names of all network namespaces that CNI's users, whoever they are, have made."""
    return {path.name for path in _NAMESPACES.glob("cni-*")}


def clear(others: set[str]) -> None:
    """Take away what this node, or a former one that was killed, has left: devices, rules, all network namespaces but
    those of others."""
    for table in ("mangle", "nat", "filter"):
        saved = run("iptables-save", "-t", table)
        kept = [line for line in saved.splitlines() if not re.search(r"\bKUBE-|\b" + _CHAIN, line)]
        if len(kept) < len(saved.splitlines()):
            run("iptables-restore", "-T", table, given="\n".join(kept) + "\n")
    for name in namespaces() - others:
        subprocess.run(["umount", "--lazy", _NAMESPACES / name], capture_output=True, check=False)
        (_NAMESPACES / name).unlink(missing_ok=True)
    if subprocess.run(["ip", "link", "show", _DEVICE], capture_output=True, check=False).returncode == 0:
        run("ip", "link", "delete", _DEVICE)
