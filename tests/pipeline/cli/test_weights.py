"""weights list and fetch: what they name, and where they put it."""

import pytest
from typer.testing import CliRunner, Result

import pipeline.weights
from pipeline.cli.app import app
from pipeline.cli.options import local_folder
from pipeline.errors import ConfigError, PipelineError
from pipeline.weights.recorded import Recorded


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["weights", *words], env={"COLUMNS": "80"})


def refusal(*words: str) -> str:
    error = call(*words).exception
    assert isinstance(error, PipelineError), error
    return str(error)


def test_the_list_names_every_use_and_breaks_no_name(tmp_path):
    done = call("list", "imagenet-f16d32", "--root", str(tmp_path))
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.output.splitlines() if line[:1].strip()}
    assert {"vgg16", "convnext-small", "efficientnet-lite0", "detok-bb"} <= lines.keys()
    assert "0c510722" in lines["convnext-small"]
    assert "used by tokenizer.lpips, evaluate.lpips\n" in done.output


@pytest.mark.parametrize("command", ["list", "fetch"])
def test_a_wrong_name_in_a_preset_is_told_with_the_nearest(tmp_path, command):
    preset = tmp_path / "mine.yaml"
    preset.write_text("extends: quickstart\nevaluate: {lpips: vgg61}\n")
    assert "evaluate.lpips: no weights are called 'vgg61'. Did you mean 'vgg16'?" in refusal(
        command, str(preset), "--root", str(tmp_path)
    )
    preset.write_text("extends: quickstart\nevaluate: {lpips: inception}\n")
    assert "inception is Inception-v3" in refusal(command, str(preset), "--root", str(tmp_path))


def test_two_places_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"extends: quickstart\nweights: {tmp_path}/{name}\n")
    said = refusal("fetch", f"{tmp_path}/a.yaml", f"{tmp_path}/b.yaml")
    assert f"{tmp_path}/a and " in said
    assert "--to" in said
    both = call("fetch", f"{tmp_path}/a.yaml", f"{tmp_path}/b.yaml", "--to", str(tmp_path))
    assert "there is nothing to fetch" in both.output


def test_a_missing_file_of_ones_own_is_not_to_be_fetched(tmp_path):
    (tmp_path / "weights.yaml").write_text(f"mine: {{uri: gone, sha256: {'a' * 64}}}\n")
    said = refusal("check", "--to", str(tmp_path))
    assert "Bring the files of mine, or correct weights.yaml" in said


def test_a_local_folder_is_a_path_or_a_file_uri(tmp_path):
    assert local_folder(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert local_folder(str(tmp_path)) == tmp_path
    for wrong in ("s3://bucket/x", "file://host/x", ""):
        with pytest.raises(ConfigError, match="no local folder"):
            local_folder(wrong)
    error = CliRunner().invoke(app, ["analyze", "quickstart", "--to", "s3://bucket/x"]).exception
    assert isinstance(error, ConfigError)


def test_what_no_publisher_has_a_sum_of_is_said_to_be_unverified(tmp_path, monkeypatch):
    """DINOv2's file has none; torchvision's carries its own in its name."""
    made = Recorded(uri="w.safetensors", sha256="a" * 64, source="https://x", source_sha256="b" * 64)
    monkeypatch.setattr(pipeline.weights, "fetch", lambda *_: made)
    said = " ".join(call("fetch", "dinov2-vitb14", "--to", str(tmp_path)).output.split())
    assert "dinov2-vitb14 was compared with no sum, as its publisher gives none" in said
    assert said.endswith(f"sha256 {'b' * 64}")
    assert "no sum" not in call("fetch", "vgg16", "--to", str(tmp_path)).output
