"""What is wrong is said in one line, with an exit code, before anything starts; and nothing half-made is left."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.support import PROJECT
from tests.support.trainers import SETS

ERROR_SECONDS = 5.0
slow = [pytest.mark.slow, pytest.mark.ray]

Call = Callable[..., str]


def one_line(stderr: str, *said: str) -> str:
    (line,) = stderr.splitlines()
    assert line.startswith("error: "), line
    for text in said:
        assert text in line, line
    return line


# --- fast: in this process, and nothing is started ---


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Call the command line with these words: it must refuse, soon, in one line that has all of `said`."""
    from pipeline import __main__, cluster

    def started(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "connect", started)
    for name in ("DVAE_SITE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*words: str, said: tuple[str, ...], code: int = 2) -> str:
        rooted = words if "--root" in words or not words else (*words, "--root", str(tmp_path / "runs"))
        monkeypatch.setattr(sys, "argv", ["dvae", *rooted])
        begin = time.monotonic()
        with pytest.raises(SystemExit) as stop:
            __main__.main()
        assert time.monotonic() - begin < ERROR_SECONDS
        captured = capsys.readouterr()
        assert stop.value.code == code, captured.err
        assert "Traceback" not in captured.out + captured.err
        assert "Report this bug" not in captured.err
        return one_line(captured.err, *said)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


OVERRIDES = {
    "unknown key": ("sit.depht=3", ("sit.depht", "Did you mean 'depth'?")),
    "unknown section": ("sitt.depth=3", ("sitt", "Did you mean 'sit'?")),
    "wrong type": ("tokenizer.steps=many", ("tokenizer.steps", "'many'", "config schema")),
    "negative steps": ("tokenizer.steps=-1", ("tokenizer.steps", "-1", "config schema")),
    "patch that does not divide": ("tokenizer.patch_size=7", ("patch_size 7 does not divide data.image_size 32",)),
    "no latent channels": ("tokenizer.latent_dim=0", ("tokenizer.latent_dim", "config schema")),
    "level without a mask": ("sit.level=4", ("sit.level", "3", "config schema")),
    "keep nothing": ("tokenizer.keep=0", ("tokenizer.keep", "greater than 0")),
    "keep everything": ("tokenizer.keep=1", ("tokenizer.keep", "less than 1")),
    "keep too little": ("tokenizer.keep=0.001", ("tokenizer.keep", "raise keep")),
    "nothing above level 3": ("sit.level=3", ("level 3 has none",)),
    "malformed override": ("tokenizer.steps", ("tokenizer.steps", "a.b=c")),
    "yes for a number": ("tokenizer.steps=yes", ("tokenizer.steps", "yes, no")),
    "not finite": ("sit.learning_rate=.inf", ("sit.learning_rate", "finite")),
    "an average that never moves": ("sit.ema_decay=1", ("sit.ema_decay", "less than 1")),
    "betas": ("sit.betas=[0.9, 2]", ("sit.betas.1", "less than 1")),
    "images too small for D": (
        "tokenizer.discriminator_layers=4",
        ("discriminator_layers 4 requires images of 48 pixels",),
    ),
    "fewer than at least": ("cluster.min_workers=4", ("min_workers 4 is more than cluster.workers 1",)),
    "nothing held out": ("data.validation_share=0", ("validation_share 0", "validation_uri is not set")),
    "guidance that never acts": ("sample.guidance_interval=[0.7, 0.1]", ("guidance_interval",)),
    "negative seed": ("sample.seed=-1", ("sample.seed",)),
    "a metric that nobody measures": ("evaluate.class_accuracy=false", ("register.gate.metric", "class_accuracy off")),
    "no metric": ("register.gate.metric=nonsense", ("register.gate.metric", "'nonsense'")),
    "no tracking server": ("tracking.uri=foo", ("tracking.uri", "'foo'")),
    "batch that cannot be shared": ("cluster.workers=5", ("cluster.workers", "divisible")),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("wrong", OVERRIDES)
def test_overrides(refused: Call, wrong: str, command: str) -> None:
    override, said = OVERRIDES[wrong]
    refused(command, "quickstart", "--set", override, said=said)


COMMANDS = {
    "preset": (("run", "quikstart"), ("'quikstart'", "quickstart")),
    "stage": (("stage", "train", "quickstart"), ("'train'", "train-tokenizer")),
    "until": (("run", "quickstart", "--until", "end"), ("'end'", "register")),
    "option": (("run", "quickstart", "--nonsense"), ("--nonsense", "--help")),
    "argument": (("run",), ("preset", "--help")),
    "command": (("walk", "quickstart"), ("walk", "--help")),
    "class": (("sample", "quickstart", "--class", "10", "--out", "x"), ("--class 10", "0 to 9")),
    "negative class": (("sample", "quickstart", "--class", "-1", "--out", "x"), ("--class",)),
    "artifact's stage": (("artifact", "show", "nothing/0123"), ("'nothing'", "train-tokenizer")),
    "artifact": (("artifact", "show", "encode/0123"), ("encode/0123", "artifact ls")),
    "repair": (("artifact", "repair", "encode/0123"), ("encode/0123", "artifact ls")),
    "debug where there is none": (("plan", "quickstart", "--debug"), ("No such option", "--debug")),
    "a folder as preset": (("plan", "some/folder"), ("'some/folder' is not a YAML file",)),
    "root with a host": (("plan", "quickstart", "--root", "file://runs/x"), ("file://runs/x", "three slashes")),
    "empty root": (("plan", "quickstart", "--root", ""), ("URI is empty",)),
    "unexpected": (("stage", "prepare", "quickstart", "--expect", "0000"), ("prepare is", "not 0000")),
    "keep what is unknown": (("artifact", "gc", "cifar10", "--yes"), ("cifar10 is unresolved", "data.uri")),
    "revision": (("run", "quickstart", "--set", "data.revision=abc"), ("revision", "abc")),
}


@pytest.mark.parametrize("wrong", COMMANDS)
def test_commands(refused: Call, wrong: str) -> None:
    words, said = COMMANDS[wrong]
    if len(words) == 1:
        words = (*words, "--root", "unused")
    refused(*words, said=said, code=1 if wrong == "revision" else 2)


def test_sources(refused: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text" / "class").mkdir(parents=True)
    (tmp_path / "text" / "class" / "a.txt").write_text("no image")
    folder = ("run", "quickstart", "--set", "data.format=folder")
    refused(*folder, said=("has no data source", "data.uri"))
    missing = f"data.uri=file://{tmp_path}/missing"
    refused(*folder, "--set", missing, said=("data.uri", "missing", "Correct the URI"), code=1)
    refused("data", "index", "quickstart", *folder[2:], "--set", missing, said=("data.uri", "missing"), code=1)
    for name in ("empty", "text"):
        refused(*folder, "--set", f"data.uri=file://{tmp_path}/{name}", said=(name, "is empty", "data.format"), code=1)
    refused(*folder, "--set", "data.uri=ftp://host/x", said=("ftp://host/x", "s3://"))


def test_more_class_folders_than_classes(refused: Call, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "a.png")
    sets = [f"data.uri=file://{tmp_path}/images", "data.format=folder", "data.classes=1"]
    words = [word for pair in sets for word in ("--set", pair)]
    refused("run", "quickstart", *words, said=("label out of range", "data.classes=2"), code=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_source_without_permission(refused: Call, tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat").chmod(0)
    words = ["--set", "data.format=folder", "--set", f"data.uri=file://{tmp_path}/images"]
    refused("run", "quickstart", *words, said=("cat", "permission"), code=1)
    (tmp_path / "images" / "cat").chmod(0o700)


def test_roots(refused: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused("run", "quickstart", "--root", "file:///proc/nowhere", said=("/proc/nowhere", "--root"), code=1)
    refused("run", "quickstart", "--root", str(tmp_path / "file"), said=("file", "another path"), code=1)
    refused("run", "quickstart", "--root", str(tmp_path / "file" / "below"), said=("file", "another path"), code=1)
    refused("run", "quickstart", "--root", "ftp://host/runs", said=("ftp://host/runs", "s3://"))
    assert (tmp_path / "file").read_text() == ""


def test_site_file(refused: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site.yaml"
    monkeypatch.setenv("DVAE_SITE", str(site))
    refused("plan", "quickstart", said=("site.yaml", "cannot be read"))
    for text, said in {
        "a: [": "not valid YAML",
        "a: 2024-02-30": "not valid YAML",
        "[1, 2]": "not a mapping",
        "clutser: {}": "cluster",
    }.items():
        site.write_text(text)
        refused("plan", "quickstart", said=(said,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "not a mapping"),
        ("sit: 3", "sit"),
        ("extends: nothing", "'nothing'"),
        ("extends: [quickstart]", "extends: ['quickstart'] is not a preset"),
        ("tracking: {experiment: 2024-02-30}", "not valid YAML (day is out of range"),
        ("sit: {steps: 1}\nsit: {steps: 2}", "duplicate key 'sit'"),
        ("tokenizer: {lpips: {uri: a, foo: 1}}", "tokenizer.lpips"),
    ],
)
def test_preset_files(refused: Call, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    refused("plan", str(tmp_path / "mine.yaml"), said=(said,))


def test_a_file_as_root(refused: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused("artifact", "ls", "--root", str(tmp_path / "file"), said=("Not a directory",), code=1)


def test_no_words_at_all_give_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline import __main__

    monkeypatch.setattr(sys, "argv", ["dvae"])
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert stop.value.code == 2
    assert "error" not in capsys.readouterr().err


def test_what_is_not_there_yet(refused: Call, tmp_path: Path) -> None:
    refused("stage", "encode", "quickstart", said=("encode needs prepare", "stage prepare quickstart"), code=1)
    import pipeline.inference.drawing  # noqa: F401  # torch takes its own seconds, once

    words = ("sample", "quickstart", "--class", "1", "--n", "1", "--out", str(tmp_path / "out"))
    refused(*words, said=("train-tokenizer", "pipeline run"), code=1)
    assert not (tmp_path / "out").exists()


def test_a_network_without_weights(refused: Call) -> None:
    words = ["--set", "evaluate.network=inception", "--set", "evaluate.network_size=299"]
    refused("run", "quickstart", *words, said=("evaluate.network_weights", "uri and sha256"))


@pytest.mark.parametrize("override", ["sit.depht=3", "tokenizer.patch_size=7"])
def test_as_a_process(tmp_path: Path, override: str) -> None:
    begin = time.monotonic()
    done = command(tmp_path / "runs", "--set", override)
    assert time.monotonic() - begin < ERROR_SECONDS
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr, override.partition("=")[0].rpartition(".")[2])
    assert not (tmp_path / "runs").exists()


# --- slow: real processes ---


def arguments(root: Path, *more: str) -> list[str]:
    sets = [*SETS, "cluster.keep_checkpoints=1", f"cluster.mirror={root.parent / 'mirror'}"]
    words = [word for pair in sets for word in ("--set", pair)]
    return [sys.executable, "-m", "pipeline", "run", "quickstart", *words, *more, "--root", str(root)]


def command(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        arguments(root, *more), cwd=PROJECT, env=environment, text=True, capture_output=True, timeout=400
    )


def huge_png(side: int) -> bytes:
    """A black picture with a bit a pixel: small as a file, 900 million pixels as an image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze, row = zlib.compressobj(), bytes(1 + (side + 7) // 8)
    data = b"".join([*(squeeze.compress(row) for _ in range(side)), squeeze.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def odd_images(folder: Path) -> None:
    """Six unusual images and six plain ones that can be read, and four that cannot."""
    good, bad = folder / "cat", folder / "dog"
    good.mkdir(parents=True)
    bad.mkdir()
    Image.new("L", (40, 30), 100).save(good / "grey.png")
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(good / "cmyk.jpg", quality=95)
    palette = Image.new("P", (40, 30), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(good / "palette.png")
    Image.fromarray(np.tile(np.linspace(0, 65535, 256, dtype=np.uint16), (30, 1))).save(good / "deep.png")
    turned = Image.new("RGB", (48, 32), (0, 0, 255))
    turned.paste((255, 0, 0), (0, 0, 48, 16))  # red above blue
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    turned.save(good / "turned.jpg", exif=exif, quality=95)
    for i in range(7):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(bad / f"plain{i}.png")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "JPEG")
    (bad / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (bad / "huge.png").write_bytes(huge_png(30_000))
    (bad / "text.jpg").write_text("this is no picture")
    (bad / "zero.png").write_bytes(b"")


def check_pixels(stored: dict[str, Image.Image]) -> None:
    assert {image.mode for image in stored.values()} == {"RGB"}
    assert stored["cat/grey.png"].getpixel((5, 5)) == (100, 100, 100)
    assert stored["cat/palette.png"].getpixel((5, 5)) == (10, 200, 30)
    red, green, blue = np.asarray(stored["cat/cmyk.jpg"], int)[5, 5]
    assert red > 240
    assert max(green, blue) < 15
    deep = np.asarray(stored["cat/deep.png"])
    assert deep[0, :, 0].tolist() == list(range(256)), "16 bits are scaled, not clipped"
    turned = stored["cat/turned.jpg"]
    assert turned.size == (32, 48)
    left, right = np.asarray(turned, int)[24, 4], np.asarray(turned, int)[24, 28]
    assert right[0] > 200 > left[0]
    assert left[2] > 200 > right[2]


class TestOddImages:
    pytestmark = slow

    @pytest.fixture(scope="class")
    def source(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("source") / "images"
        odd_images(folder)
        return folder

    def prepare(self, source: Path, root: Path, *sets: str) -> subprocess.CompletedProcess[str]:
        given = ["data.format=folder", f"data.uri={source.as_uri()}", "data.validation_share=0.4", *sets]
        return command(root, *(word for pair in given for word in ("--set", pair)), "--until", "prepare")

    def test_they_are_converted_or_left_out(self, source: Path, tmp_path: Path) -> None:
        import pyarrow.parquet as pq

        from pipeline.data.decode import decode_image

        done = self.prepare(source, tmp_path / "runs", "data.quarantine_budget=0.5")
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = (tmp_path / "runs" / "prepare").glob("*/manifest.json")
        manifest = json.loads(path.read_text())
        rows = [row for shard in path.parent.rglob("*.parquet") for row in pq.read_table(shard).to_pylist()]
        assert manifest["rows"] == len(rows) == 12
        reasons = {entry["key"]: entry["reason"] for entry in manifest["details"]["quarantined"]}
        assert reasons.keys() == {"dog/cut.jpg", "dog/huge.png", "dog/text.jpg", "dog/zero.png"}
        assert reasons["dog/zero.png"] == "zero bytes"
        assert "30000 x 30000 pixels" in reasons["dog/huge.png"]
        assert "not an image" in reasons["dog/text.jpg"]
        assert "damaged" in reasons["dog/cut.jpg"]
        assert manifest["metrics"]["data/quarantined"] == 4
        check_pixels({row["key"]: decode_image(row["image"], None) for row in rows})

    def test_too_many_of_them_end_the_run(self, source: Path, tmp_path: Path) -> None:
        done = self.prepare(source, tmp_path / "runs", "data.quarantine_budget=0.1")
        assert done.returncode == 1
        one_line(done.stderr, "4 of 16 images cannot be read", "dog/cut.jpg", "data.quarantine_budget")
        assert not list(tmp_path.glob("runs/prepare/*/manifest.json"))


@pytest.mark.slow
@pytest.mark.ray
def test_label_out_of_range(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    images = [{"bytes": picture.getvalue(), "path": None}] * 20
    pq.write_table(pa.table({"image": images, "label": [*range(10), *range(9), 12]}), tmp_path / "a.parquet")
    sets = ["--set", "data.format=parquet", "--set", f"data.uri={tmp_path}/a.parquet", "--set", "data.classes=10"]
    done = command(tmp_path / "runs", *sets, "--until", "prepare")
    assert done.returncode == 1, done.stdout + done.stderr
    one_line(done.stderr, "a.parquet#19", "label 12 is out of range", "data.classes")
    assert not list(tmp_path.glob("runs/prepare/*/manifest.json"))


MANY_CHECKPOINTS = (
    "--set", "tokenizer.steps=200", "--set", "tokenizer.checkpoint_every=10", "--until", "train-tokenizer",
)  # fmt: skip


def interrupted_while_it_trains(root: Path, number: signal.Signals) -> None:
    """Send a signal to the command once it has written a checkpoint: it ends in one line, and all that it started."""
    process = subprocess.Popen(
        arguments(root, *MANY_CHECKPOINTS), cwd=PROJECT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(root.glob(".work/train-tokenizer/*/checkpoints/*/state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    (line,) = stderr.splitlines()
    assert line.startswith("interrupted: ")
    assert not psutil.wait_procs(below, timeout=60)[1]
    assert not list(root.glob("train-tokenizer/*/manifest.json"))


@pytest.mark.slow
@pytest.mark.ray
def test_a_request_to_end_ends_cleanly(tmp_path: Path) -> None:
    interrupted_while_it_trains(tmp_path / "runs", signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.ray
def test_an_interrupt_ends_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    interrupted_while_it_trains(root, signal.SIGINT)
    done = command(root, *MANY_CHECKPOINTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(root.glob("train-tokenizer/*/manifest.json"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.ray
def test_a_full_disk(small_disk: Path) -> None:
    """A checkpoint does not fit; once there is room the same command ends well."""
    root = small_disk / "runs"
    sets = ["tokenizer.width=256", "tokenizer.heads=4", "tokenizer.hidden=512", "tokenizer.steps=8"]
    more = (*(word for pair in sets for word in ("--set", pair)), "--until", "train-tokenizer")
    done = command(root, *more)
    assert done.returncode == 1, done.stdout + done.stderr
    one_line(done.stderr, "No space left", "Free some disk space")
    assert not list(root.glob("train-tokenizer/*/manifest.json"))
    verify = [sys.executable, "-m", "pipeline", "artifact", "verify", "--root", str(root)]
    assert subprocess.run(verify, cwd=PROJECT, capture_output=True).returncode == 0
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    done = command(root, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(root.glob("train-tokenizer/*/manifest.json"))
    assert subprocess.run(verify, cwd=PROJECT, capture_output=True).returncode == 0
