"""`analyze PRESET PRESET ...`: tokenizers side by side, from what the stage has left; and what is refused."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from pipeline.cli.app import app
from pipeline.errors import PipelineError
from pipeline.stages import analyze
from tests.support.artifacts import prepared, put
from tests.support.command_lines import parsed
from tests.support.contexts import committed, local_context, untrained_tokenizer
from tests.support.trainers import SETS, small_config

TOKENIZERS = {"narrow": [], "wide": ["tokenizer.latent_dim=6"], "coarse": ["tokenizer.patch_size=8"]}
OTHERS = {
    "seed": ["seed=7"],
    "size": ["data.image_size=16", "tokenizer.patch_size=2"],
    "new": ["tokenizer.latent_dim=5"],
}
ALL = {**TOKENIZERS, **OTHERS}


def preset(folder: Path, name: str, sets: list[str]) -> Path:
    """A preset's file with these fields."""
    tree: dict[str, Any] = {"extends": "quickstart"}
    for key, _, value in (pair.partition("=") for pair in sets):
        section, _, field = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[field] = int(value)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with analyses of tokenizers without training, and their presets beside it."""
    folder = tmp_path_factory.mktemp("analyses")
    for name, sets in ALL.items():
        preset(folder, name, sets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyze, "ANALYZED", 20)
        for name in (*TOKENIZERS, "seed", "size"):
            config = small_config(folder / "runs", *ALL[name])
            prepare = put(config, prepared(config))
            inputs = {"prepare": prepare, "train-tokenizer": untrained_tokenizer(config, prepare, folder / "scratch")}
            context = local_context(config, "analyze", inputs, folder / "scratch")
            committed(context, analyze.run(context))
    return folder


def call(world: Path, *words: str, to: Path | None = None) -> Result:
    presets = [str(world / f"{word}.yaml") if word in ALL else word for word in words]
    sets = [word for pair in SETS for word in ("--set", pair)]
    root = ["--root", (world / "runs").as_uri(), "--to", str(to or world / "out")]
    return CliRunner().invoke(app, ["analyze", *presets, *sets, *root], env={"COLUMNS": "200"})


def refused(world: Path, *words: str, to: Path | None = None) -> str:
    done = call(world, *words, to=to)
    assert isinstance(done.exception, PipelineError), done.output
    line = str(done.exception)
    assert "\n" not in line
    return line


def test_tokenizers_stand_side_by_side(world: Path, tmp_path: Path) -> None:
    done = call(world, "narrow", "wide", "coarse", to=tmp_path / "new" / "folder")
    assert done.exit_code == 0, done.output
    files = {path.name: path for path in (tmp_path / "new" / "folder").iterdir()}
    pictures = {"figure1a.png", "figure1b.png", "figure1c.png", "figure2.png", "spectrum.png"}
    assert files.keys() == pictures | {"figures.json"}
    assert all(str(path) in done.output for path in files.values())
    heights = {name: Image.open(files[name]).size[1] for name in pictures}
    alone = call(world, "narrow", to=tmp_path / "alone")
    assert alone.exit_code == 0, alone.output
    assert heights["figure2.png"] - Image.open(tmp_path / "alone" / "figure2.png").size[1] == 2 * 4 * (96 + 6)

    written = json.loads(files["figures.json"].read_text())
    assert (written["images"], written["image_size"]) == (20, 32)
    tokenizers = written["tokenizers"]
    assert [one["name"] for one in tokenizers] == ["narrow", "wide", "coarse"]
    assert [one["latent_shape"] for one in tokenizers] == [[4, 8, 8], [6, 8, 8], [4, 4, 4]]
    assert len({one["analyze"] for one in tokenizers}) == 3
    for one in tokenizers:
        assert one["inputs"].keys() == {"prepare", "train-tokenizer"}
        numbers, projections = (stored(world, one["analyze"], name) for name in ("metrics.json", "projections.json"))
        assert one["projections"] == projections
        assert {key: one[key] for key in ("metrics", "spectra", "removal")} == {
            key: numbers[key] for key in ("metrics", "spectra", "removal")
        }
        assert one["removal"]["energy"][0] == 0
        assert np.isfinite(one["removal"]["psnr"]).all()
        assert f"{100 * one['metrics']['latent/high_frequency_share']:.3g} %" in done.output


def stored(world: Path, fingerprint: str, name: str) -> Any:
    return json.loads((world / "runs" / "analyze" / fingerprint[:12] / name).read_text())


def test_presets_of_one_name_are_told_apart(world: Path, tmp_path: Path) -> None:
    other = preset(tmp_path, "narrow", TOKENIZERS["wide"])
    done = call(world, "narrow", str(other), to=tmp_path / "out")
    assert done.exit_code == 0, done.output
    names = [one["name"] for one in json.loads((tmp_path / "out" / "figures.json").read_text())["tokenizers"]]
    assert names == [str(world / "narrow.yaml"), str(other)]


def test_one_tokenizer_is_named_once(world: Path) -> None:
    line = refused(world, "wide", "narrow", "quickstart")
    assert re.search(r"narrow.yaml and quickstart have the same tokenizer \(analyze/\w{12}\)", line)
    assert "Name each tokenizer once." in line


@pytest.mark.parametrize("other", ["seed", "size"])
def test_other_images_are_not_compared(world: Path, other: str) -> None:
    line = refused(world, "narrow", other)
    size = 16 if other == "size" else 32
    found = re.search(
        rf"{other} was analysed on other images \(20 of prepare/(\w+) at {size} x {size}\) "
        r"than narrow \(20 of prepare/(\w+) at 32 x 32\)",
        line,
    )
    assert found, line
    assert (found[1] == found[2]) == (other == "size")


def test_a_missing_analysis_names_its_command(world: Path) -> None:
    line = refused(world, "narrow", "new")
    assert "new.yaml is missing at" in line
    (command,) = re.findall(r"`python -m (.+)`", line)
    words = shlex.split(command)
    assert words[:5] == ["pipeline", "run", str(world / "new.yaml"), "--until", "analyze"]
    asked = parsed(words).params
    assert asked["set_"] == SETS
    assert asked["root"] == (world / "runs").as_uri()


def test_a_source_that_is_not_there_is_said(world: Path, tmp_path: Path) -> None:
    (tmp_path / "photos.yaml").write_text("extends: quickstart\ndata: {format: folder}\n")
    assert "photos.yaml has no data source" in refused(world, "narrow", str(tmp_path / "photos.yaml"))


def test_a_folder_that_is_a_file(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused(world, "narrow", to=tmp_path / "file")
    assert str(tmp_path / "file") in line
    assert "--to" in line


def test_a_changed_file_is_named(world: Path, tmp_path: Path) -> None:
    done = call(world, "wide", to=tmp_path)
    (one,) = json.loads((tmp_path / "figures.json").read_text())["tokenizers"]
    path = world / "runs" / "analyze" / one["analyze"][:12] / "projections.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"1", b"2", 1))
    try:
        assert "artifact repair analyze/" in refused(world, "narrow", "wide")
    finally:
        path.write_bytes(before)
    assert done.exit_code == 0


def test_it_wants_a_preset_and_a_folder(world: Path) -> None:
    assert CliRunner().invoke(app, ["analyze", "--to", str(world)]).exit_code == 2
    assert "--to" in CliRunner().invoke(app, ["analyze", "quickstart"]).output
