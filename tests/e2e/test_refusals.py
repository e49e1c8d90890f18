"""What is wrong with a command is said in one line, with an exit code, before anything starts."""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.whole_runs import attempt, one_line

ERROR_SECONDS = 5.0

Call = Callable[..., str]


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
    "patch that does not divide": (
        "tokenizer.patch_size=7",
        ("patch_size 7 does not divide data.image_size 32; 4 or 8 does, or images of 35 pixels",),
    ),
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
    "levels that do not sum to 1": (
        "tokenizer.level_probabilities=[0.5, 0.5, 0.5, 0.5]",
        ("level_probabilities must sum to 1, not 2",),
    ),
    "levels by another number": (
        "tokenizer.level_probabilities=[0.5, 0.5]",
        ("tokenizer.level_probabilities: it needs 4 probabilities, those of levels 0 to 3",),
    ),
    "one probability for all levels": ("tokenizer.level_probabilities=0.25", ("it needs 4 probabilities",)),
    "a level less often than never": (
        "tokenizer.level_probabilities=[1.5, -0.5, 0, 0]",
        ("tokenizer.level_probabilities.0", "less than or equal to 1"),
    ),
    "a level nobody knows how often": (
        "tokenizer.level_probabilities=[.nan, 0, 0, 1]",
        ("tokenizer.level_probabilities.0", "finite"),
    ),
    "a perceptual term that there is not": ("tokenizer.perceptual=vgg", ("tokenizer.perceptual", "'lpips+convnext'")),
    "SiT's patch on the latent": (
        "sit.patch_size=3",
        ("sit.patch_size 3 does not divide the 8 x 8 latent of the tokenizer; 2 or 4 does",),
    ),
    "weights of another network": (
        "evaluate.lpips=inception",
        ("evaluate.lpips: inception is Inception-v3", "takes VGG-16", "Set evaluate.lpips=vgg16"),
    ),
    "nothing smaller to transform": (
        "tokenizer={regularizer: equivariance, patch_size: 16, discriminator_layers: 3}",
        ("regularizer equivariance", "2 x 2 latent", "tokenizer.patch_size"),
    ),
    "less than a block to mask": (
        "tokenizer={regularizer: matching, patch_size: 8}",
        ("regularizer matching: a 4 x 4 latent", "blocks of 8 x 8", "multiple of 8"),
    ),
    "a negative weight": ("tokenizer.scale_weight=-1", ("tokenizer.scale_weight", "greater than 0")),
    "fewer than at least": ("cluster.min_workers=4", ("min_workers 4 is more than cluster.workers 1",)),
    "nothing held out": ("data.validation_share=0", ("validation_share 0", "validation_uri is not set")),
    "guidance that never acts": ("sample.guidance_interval=[0.7, 0.1]", ("guidance_interval",)),
    "negative seed": ("sample.seed=-1", ("sample.seed",)),
    "a metric that nobody measures": ("evaluate.class_accuracy=false", ("register.gate.metric", "class_accuracy off")),
    "a metric that no gate sees": (
        "register.gate.metric=latent/uniform_off_dc",
        ("register.gate.metric", "psnr_level1"),
    ),
    "Inception's without it": ("register.gate.metric=samples/sfid", ("register.gate.metric", "efficientnet_lite0")),
    "LPIPS without weights": ("register.gate.metric=reconstruction/lpips", ("gate.metric", "without evaluate.lpips")),
    "no metric": ("register.gate.metric=nonsense", ("register.gate.metric", "'nonsense'")),
    "no tracking server": ("tracking.uri=foo", ("tracking: uri foo has no scheme", "http://foo")),
    "batch that cannot be cut": (
        "cluster.accumulate=7",
        ("cluster.accumulate: tokenizer.batch_size 48", "1 worker x 7 parts", "can be cut into 6 or 8"),
    ),
    "batch of a worker that cannot be cut": (
        "cluster={workers: 2, accumulate: 16}",
        ("tokenizer.batch_size 48 is not divisible by 2 workers x 16 parts; a worker's 24 can be cut into 12 or 24",),
    ),
    "batch that cannot be shared": ("cluster.workers=5", ("cluster.workers", "by 5 workers, but by 4 or 6")),
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
    "class by an unknown name": (("sample", "quickstart", "--class", "cat", "--out", "x"), ("--class cat", "0 to 9")),
    "artifact's stage": (("artifact", "show", "nothing/0123"), ("'nothing'", "train-tokenizer")),
    "artifact": (("artifact", "show", "encode/0123"), ("encode/0123", "artifact ls")),
    "repair": (("artifact", "repair", "encode/0123"), ("encode/0123", "artifact ls")),
    "debug where there is none": (("plan", "quickstart", "--debug"), ("No such option", "--debug")),
    "a folder as preset": (("plan", "some/folder"), ("unknown preset 'some/folder'", "ends in .yaml")),
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


def test_another_number_of_class_folders_than_classes(refused: Call, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "a.png")
    sets = [f"data.uri=file://{tmp_path}/images", "data.format=folder"]
    words = ["run", "quickstart", *(word for pair in sets for word in ("--set", pair)), "--set"]
    refused(*words, "data.classes=1", said=("label out of range", "data.classes=2"), code=1)
    refused(
        *words, "data.classes=12", said=("10 classes without any image", "2 class folders", "data.classes=2"), code=1
    )


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
    words = ("sample", "quickstart", "--class", "1", "--n", "1", "--out", str(tmp_path / "out"))
    refused(*words, said=("train-tokenizer", "pipeline run"), code=1)
    assert not (tmp_path / "out").exists()


def test_a_network_without_weights(refused: Call) -> None:
    words = ["--set", "evaluate.network=inception", "--set", "evaluate.network_size=299"]
    refused("run", "quickstart", *words, said=("inception (evaluate.network_weights)", "weights fetch inception --to"))
    refused("run", "imagenet-f16d32", said=("vgg16 (tokenizer.lpips)", "weights fetch vgg16 convnext-small inception"))
    refused("weights", "fetch", "vgg-16", said=("no weights are called 'vgg-16'", "Did you mean 'vgg16'?"))


def test_a_file_of_other_weights(refused: Call, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": zeros(5, 3)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    words = ("run", "quickstart", "--set")
    refused(
        *words, f"evaluate.lpips={{uri: 'file://{path}', sha256: '{digest}'}}",
        said=(f"evaluate.lpips: file://{path} is not of VGG-16", "features.0.weight has shape [5, 3]", "weights fetch"),
    )  # fmt: skip
    refused(*words, f"evaluate.lpips={{uri: 'file://{path}', sha256: {'a' * 64}}}", said=(str(path), digest, "a" * 64))
    refused(
        *words, f"evaluate.lpips={{uri: 'file://{path}.none', sha256: {'b' * 64}}}", said=(f"{path}.none", "missing")
    )


@pytest.mark.parametrize("override", ["sit.depht=3", "tokenizer.patch_size=7"])
def test_as_a_process(tmp_path: Path, override: str) -> None:
    begin = time.monotonic()
    done = attempt("run", tmp_path / "runs", "--set", override)
    assert time.monotonic() - begin < ERROR_SECONDS
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr, override.partition("=")[0].rpartition(".")[2])
    assert not (tmp_path / "runs").exists()
