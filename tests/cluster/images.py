"""Images for the node: the product's, by this checkout's Dockerfile, and one of the programs that run in pods."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.node import PAUSE, Node
from tests.cluster.programs import CACHE, IN_PODS, PROJECT
from tests.support.containers import build, podman

APP = "localhost/denoising-vae:test"
NEXT = "localhost/denoising-vae:next"  # the same code, as of another commit: what an upgrade brings
PROGRAMS = "localhost/cluster-programs:test"


def make(programs: Path, scratch: Path) -> list[str]:
    """Build them all with podman, which does again only what has changed; the names."""
    scratch.mkdir()
    # By names instead of the commit's: an image that has the same code need not be brought in again.
    build(APP, PROJECT, "test", scratch)
    build(NEXT, PROJECT, "next", scratch)
    _make_programs(programs, scratch / "programs")
    _make_pause(scratch / "pause")
    return [APP, NEXT, PROGRAMS, PAUSE]


def load(node: Node, names: list[str]) -> None:
    """Bring them into containerd, those that it does not have yet."""
    record = CACHE / "images.json"
    there: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    held = set(node.ctr("images", "list", "--quiet").split())
    wanted = {name: podman("image", "inspect", name, "--format", "{{.Id}}").stdout.strip() for name in names}
    missing = [name for name in names if name not in held or there.get(name) != wanted[name]]
    if not missing:
        return
    _check_room(missing, held)
    # Several images in one stream share their layers, of which one has 7 GB; what containerd has of an older image
    # under the same name is read again, but neither written nor unpacked.
    save = ["podman", "save", "--quiet", "--format", "docker-archive", "--multi-image-archive", *missing]
    with (
        tempfile.TemporaryDirectory(dir=node.folder) as scratch,  # Podman leaves its copies there when it is cut off
        subprocess.Popen(save, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": scratch}) as archive,
    ):
        taken = subprocess.run(
            ["ctr", "--address", node.containerd, "--namespace", "k8s.io", "images", "import", "-"],
            stdin=archive.stdout, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert taken.returncode == 0, f"containerd did not take the images: {taken.stderr[-2000:]}"
    assert archive.returncode == 0, save
    record.write_text(json.dumps({**there, **{name: wanted[name] for name in missing}}))


def _check_room(missing: list[str], held: set[str]) -> None:
    """AssertionError where the import would fill the disk.

    It takes twice the image's size: first Podman's temporary copy of its layers and the one that containerd keeps, then
    (the temporary one is gone) that and the unpacked files. Once only where containerd has the layers already.
    """
    sizes = {name: int(podman("image", "inspect", name, "--format", "{{.Size}}").stdout) for name in missing}
    needed = max(size * (1 if name in held else 2) for name, size in sizes.items())
    free = shutil.disk_usage(CACHE).free
    assert free > needed, (
        f"the disk of {CACHE} has {free / 1e9:.0f} GB free, and to bring {', '.join(missing)} into containerd takes "
        f"{needed / 1e9:.0f} GB for a while"
    )


def _make_programs(programs: Path, folder: Path) -> None:
    """Nothing but the programs, which need nothing else."""
    folder.mkdir()
    for name in IN_PODS:
        shutil.copy(programs / name, folder / name)
    (folder / "tmp").mkdir(mode=0o777)
    lines = ["FROM scratch", *(f"COPY {name} /{name}" for name in IN_PODS), "COPY tmp /tmp", "USER 65532:65532"]
    (folder / "Dockerfile").write_text("\n".join([*lines, ""]))
    podman("build", "--layers", "--tag", PROGRAMS, str(folder))
    shutil.rmtree(folder)


def _make_pause(folder: Path) -> None:
    folder.mkdir()
    program = shutil.which("catatonit")
    assert program is not None
    shutil.copy(program, folder / "catatonit")
    (folder / "Dockerfile").write_text('FROM scratch\nCOPY catatonit /catatonit\nENTRYPOINT ["/catatonit", "-P"]\n')
    podman("build", "--layers", "--tag", PAUSE, str(folder))
