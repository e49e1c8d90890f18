"""What cannot be imported as a tokenizer is refused in one line that names the file and says what to do."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models.conv_sizes import SD_VAE
from models.sizes import tokenizer_shape
from models.tokenizers.folder import described
from pipeline.artifacts import all_manifests
from pipeline.errors import ConfigError
from pipeline.storage import open_storage
from pipeline.workflow.imported import ImportUse, SourceKind, import_tokenizer
from tests.support.tokenizers import saved_tokenizer

USE = ImportUse(32)


def spoiled(folder: Path, **changes: Any) -> Path:
    """A folder of an SD-VAE with another config."""
    saved_tokenizer(folder, "sd-vae")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def refusal(folder: Path, kind: SourceKind, source: Path | str, use: ImportUse = USE) -> str:
    root = folder / "runs"
    with pytest.raises(ConfigError) as caught:
        import_tokenizer(str(root), kind, str(source), use)
    assert not root.exists() or all_manifests(open_storage(str(root))) == []
    line = str(caught.value)
    assert str(source) in line
    assert "\n" not in line
    return line


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    unet = spoiled(tmp_path / "unet", _class_name="UNet2DConditionModel")
    assert "it is a UNet2DConditionModel, no AutoencoderKL" in refusal(tmp_path, "sd-vae", unet)
    line = refusal(tmp_path, "dc-ae", spoiled(tmp_path / "kl"))
    assert f"it is a sd-vae, no dc-ae. Run `python -m pipeline import tokenizer sd-vae {tmp_path}/kl`" in line
    assert "no DeTok state dict" in refusal(tmp_path, "detok", tmp_path / "kl")
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "model_index.json").write_text("{}")
    assert f"{pipeline}/vae" in refusal(tmp_path, "sd-vae", pipeline)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a class that is no text": ({"_class_name": ["AutoencoderKL"]}, "no AutoencoderKL"),
    "no blocks": ({"down_block_types": None}, "its down_block_types are not all"),
    "channels that are no list": ({"block_out_channels": 8}, "its config has block_out_channels 8"),
    "no channels": ({"block_out_channels": []}, "its config has block_out_channels []"),
    "channels that are text": ({"block_out_channels": [8, "a"]}, "its config has block_out_channels [8, 'a']"),
    "more channels than memory": ({"block_out_channels": [8, 16, 10**9]}, "its config has block_out_channels"),
    "channels for gigabytes": ({"block_out_channels": [8, 16, 65536]}, "lacks 4 tensors of a sd-vae"),
    "a negative latent": ({"latent_channels": -3}, "its config has latent_channels -3"),
    "no whole layer": ({"layers_per_block": 1.5}, "its config has layers_per_block 1.5"),
    "no groups": ({"norm_num_groups": 0}, "its config has norm_num_groups 0"),
    "an unknown activation": ({"act_fn": "foo"}, "diffusers' AutoencoderKL cannot be built with these arguments"),
    "images with an unknown number of channels": ({"in_channels": [3]}, "its images do not have three channels"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_of_any_content_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    changes, said = CONFIGS[case]
    assert said in refusal(tmp_path, "sd-vae", spoiled(tmp_path / "kl", **changes))


@pytest.mark.parametrize("size", [True, -32, 0, "32", 1.5])
def test_an_image_size_that_is_none(size: Any) -> None:
    with pytest.raises(ValueError, match=f"its config has image_size {size!r}"):
        described({"_class_name": "AutoencoderKL", **SD_VAE, "sample_size": size})


def test_a_config_without_end(tmp_path: Path) -> None:
    folder = spoiled(tmp_path / "kl")
    (folder / "config.json").write_text("[" * 100_000)
    assert "config.json is not JSON" in refusal(tmp_path, "sd-vae", folder)


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.text(max_size=3), st.just("AutoencoderDC")
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
fields = st.sampled_from(
    ["_class_name", "kind", "network", "in_channels", "down_block_types", "block_out_channels", "latent_channels",
     "layers_per_block", "norm_num_groups", "sample_size", "encoder_block_out_channels", "downsample_block_type"]
)  # fmt: skip


@given(st.dictionaries(fields, json_values), st.sampled_from([None, 32]))
def test_any_config_is_described_or_refused(changes: dict[str, Any], size: int | None) -> None:
    config = {"_class_name": "AutoencoderKL", "sample_size": 32, **SD_VAE, **changes}
    try:
        kind, network = described(config, size)
    except ValueError:
        return
    assert tokenizer_shape(kind, network)[1] >= 1


def test_a_folder_says_what_it_has_instead(tmp_path: Path) -> None:
    folder = spoiled(tmp_path / "kl")
    weights = folder / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for name, said in (
        ("model.ckpt", "has model.ckpt alone, a pickle"),
        ("vae.fp16.safetensors", f"but vae.fp16.safetensors. Give the file: {folder}/vae.fp16.safetensors."),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", "has its weights in parts"),
    ):
        weights.rename(folder / name)
        assert said in refusal(tmp_path, "sd-vae", folder)
        (folder / name).rename(weights)
    weights.rename(folder / "vae.fp16.safetensors")
    assert import_tokenizer(str(tmp_path / "runs"), "sd-vae", str(folder / "vae.fp16.safetensors"), USE)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    line = refusal(tmp_path / "other", "sd-vae", folder)
    assert "is not a file of safetensors (a pointer, whose file Git LFS has not fetched)" in line
    weights.write_bytes(whole)
    counted = {name: tensor.int() if tensor.dim() == 1 else tensor for name, tensor in load_file(weights).items()}
    save_file(counted, weights)
    assert "is of torch.int32, not torch.float32" in refusal(tmp_path / "other", "sd-vae", folder)


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    for name in ("weights.bin", "weights.pth", "weights.ckpt"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
        assert "is a pickle" in refusal(tmp_path, "detok", tmp_path / name)
    folder = spoiled(tmp_path / "kl")
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    assert "diffusion_pytorch_model.bin alone, a pickle" in refusal(tmp_path, "sd-vae", folder)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "has no file model.safetensors or" in refusal(tmp_path, "vit", tmp_path)
    assert "is missing" in refusal(tmp_path, "vit", tmp_path / "no.safetensors")
    saved_tokenizer(tmp_path / "vit", "vit")
    (tmp_path / "vit" / "config.json").unlink()
    assert "no config.json beside it" in refusal(tmp_path, "vit", tmp_path / "vit")


def test_what_does_not_fit_the_images_is_refused(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path / "vit", "vit")
    saved_tokenizer(tmp_path / "dc-ae", "dc-ae")
    line = refusal(tmp_path, "vit", tmp_path / "vit", ImportUse(64))
    assert "for images of 32 pixels, not 64. Give --image-size 32." in line
    line = refusal(tmp_path, "dc-ae", tmp_path / "dc-ae", ImportUse(30))
    assert "factor 4 does not divide image_size 30. Give an --image-size that is a multiple of 4." in line
    line = refusal(tmp_path, "dc-ae", tmp_path / "dc-ae", ImportUse(4))
    assert "a 1 x 1 latent has no frequencies" in line
    assert "--image-size" in line
    assert "a 96 x 96 latent are 1.4 GB" in refusal(tmp_path, "dc-ae", tmp_path / "dc-ae", ImportUse(384))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path / "vit", "vit")
    weights = tmp_path / "vit" / "model.safetensors"
    save_file({**load_file(weights), "pixel_head.bias": torch.full((48,), torch.nan)}, weights)
    assert "pixel_head.bias is not finite" in refusal(tmp_path, "vit", tmp_path / "vit")


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path / "vit", "vit")
    weights = tmp_path / "vit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "is not a file of safetensors" in refusal(tmp_path, "vit", tmp_path / "vit")


def test_without_diffusers_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_tokenizer(tmp_path / "sd-vae", "sd-vae")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"kind sd-vae needs the package diffusers.*pip install '\.\[baselines\]'"):
        import_tokenizer(str(tmp_path / "runs"), "sd-vae", str(tmp_path / "sd-vae"), USE)
