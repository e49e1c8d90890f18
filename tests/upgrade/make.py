"""Makes what later versions are tested with: `python -m tests.upgrade.make`, once a release, by its code.

It leaves VERSION.tar.gz in this folder: `root`, where one tiny run is finished, the tokenizer of a second and the
generator of a third are half trained; and the three configs, with every field, as that version resolved them.
"""

import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tests.support import PROJECT
from tests.support.whole_runs import ENVIRONMENT, TINY, sets

SMALL = ["evaluate.network=self"]  # whose statistics are some kilobytes, in the place of 14 MB
CONFIGS = {"finished": [], "half-tokenizer": ["tokenizer.seed=1"], "half-sit": ["sit.seed=1"]}
TRAINS = {"half-tokenizer": "train-tokenizer", "half-sit": "train-sit"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *words]


def make(folder: Path) -> None:
    """The root and the configs, in this folder."""
    root = folder / "root"
    for name, more in CONFIGS.items():
        shown = subprocess.run(
            command("config", "show", "quickstart", *sets(*TINY, *SMALL, *more)),
            cwd=PROJECT,
            capture_output=True,
            check=True,
        )
        (folder / f"{name}.yaml").write_bytes(shown.stdout)
    subprocess.run(run_of(folder, "finished"), cwd=PROJECT, env=environment(folder), check=True)
    for name, stage in TRAINS.items():
        _half_trained(folder, name, root / ".work" / stage)


def run_of(folder: Path, name: str) -> list[str]:
    """The command of a whole run."""
    root, mirror = folder / "root", f"cluster.mirror={folder / 'mirror'}"
    return command("run", str(folder / f"{name}.yaml"), "--set", mirror, "--root", str(root))


def environment(folder: Path) -> dict[str, str]:
    """Its variables, MLflow's database in the folder among them."""
    return {**os.environ, **ENVIRONMENT, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


def _half_trained(folder: Path, name: str, work: Path) -> None:
    """Ended by SIGTERM behind its second checkpoint."""
    process = subprocess.Popen(run_of(folder, name), cwd=PROJECT, env=environment(folder))
    deadline = time.monotonic() + 300
    while len(list(work.glob("*/checkpoints/*/state.json"))) < 2:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{name} ended, or left no checkpoint in 300 s")
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait()


def _kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without what MLflow keeps and what is drawn anew."""
    return None if member.name in ("root/mlflow-artifacts", "root/reports") else member


def main() -> None:
    """Into a folder of its own, then as one archive beside this file."""
    place = Path(__file__).with_name(f"{version('denoising-vae')}.tar.gz")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder)
        with tarfile.open(place, "w:gz") as archive:
            for name in ("root", *(f"{name}.yaml" for name in CONFIGS)):
                archive.add(folder / name, name, filter=_kept)
    print(f"{place}: {place.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
