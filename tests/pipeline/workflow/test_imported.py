"""A tokenizer that was not trained here is an artifact as a trained one: what is imported, and its use."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.conv_sizes import DC_AE
from models.tokenizers import load
from models.tokenizers.detok import from_detok
from models.tokenizers.folder import described
from pipeline.artifacts import Manifest, all_manifests, broken_files, read_manifest
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, ContractError
from pipeline.inference import load_tokenizer
from pipeline.reports import model_card
from pipeline.storage import open_storage
from pipeline.weights import CATALOGUE
from pipeline.workflow import config_of, make_plan, stage_fingerprints, survey, unneeded
from pipeline.workflow.imported import (
    ImportUse,
    SourceKind,
    _assumed,
    import_tokenizer,
    preset_lines,
)
from pipeline.workflow.importing import check_not_imported, import_fingerprint
from pipeline.workflow.planning import print_plan
from tests.models.test_detok import detok_weights
from tests.pipeline.workflow.world import World
from tests.support.stages import PLAIN
from tests.support.tokenizers import random_tokenizer, saved_tokenizer, some_images

USE = ImportUse(32)
CPU = torch.device("cpu")


def imported(folder: Path, kind: SourceKind = "vit", use: ImportUse = USE, root: str | None = None) -> Manifest:
    """A tiny one of this kind; the root is `folder`/runs."""
    assert kind != "detok"
    source = folder / kind
    if not source.exists():
        saved_tokenizer(source, kind)
    return import_tokenizer(root or str(folder / "runs"), kind, str(source), use)


def sets_of(manifest: Manifest) -> list[str]:
    """As the lines that the command prints, for a config that trains a ViT."""
    network = ["tokenizer.width=null", "tokenizer.depth=null", "tokenizer.heads=null", "tokenizer.hidden=null"]
    own = ["kind", "imported", "patch_size", "latent_dim", "mask", "keep"]
    return [*network, *(f"tokenizer.{name}={manifest.config[f'tokenizer.{name}']}" for name in own)]


def config_with(manifest: Manifest, root: Path, *sets: str) -> Config:
    return load_config("quickstart", [*sets_of(manifest), *sets], str(root))


@pytest.mark.parametrize("kind", ["vit", "sd-vae", "dc-ae"])
def test_an_import_is_used_as_a_trained_tokenizer_is(tmp_path: Path, kind: SourceKind) -> None:
    made = imported(tmp_path, kind)
    storage = open_storage(str(tmp_path / "runs"))
    assert all_manifests(storage) == [made]
    assert broken_files(storage, made) == []
    tokenizer, latent_filter = load_tokenizer(storage, made, CPU)
    expected, x = random_tokenizer(kind), some_images()  # type: ignore[arg-type]
    assert torch.equal(tokenizer.encode(x).mean_BDhw, expected.encode(x).mean_BDhw)
    assert latent_filter(expected.encode(x).mean_BDhw, 2).shape == (2, *expected.latent_shape)


def test_where_it_is_from_is_kept(tmp_path: Path) -> None:
    made = imported(tmp_path)
    source = made.details["source"]
    assert source["uri"] == (tmp_path / "vit").as_uri(), "wherever it is read"
    assert len(source["sha256"]) == 64
    assert (made.inputs, made.metrics) == ({}, {})


def test_the_content_and_the_use_count_and_the_place_does_not(tmp_path: Path) -> None:
    first = imported(tmp_path)
    (tmp_path / "moved").mkdir()
    (tmp_path / "vit").rename(tmp_path / "moved" / "vit")
    assert imported(tmp_path / "moved").fingerprint == first.fingerprint
    assert imported(tmp_path / "moved", use=ImportUse(32, "remove")).fingerprint != first.fingerprint
    weights = tmp_path / "moved" / "vit" / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert imported(tmp_path / "moved").fingerprint != first.fingerprint


def test_a_network_for_any_size_is_of_the_images_size(tmp_path: Path) -> None:
    made = imported(tmp_path, "sd-vae", ImportUse(64))
    assert made.details["network"]["image_size"] == 64
    tokenizer, _ = load_tokenizer(open_storage(str(tmp_path / "runs")), made, CPU)
    assert tokenizer.latent_shape == (3, 16, 16)


def test_roots_and_sources_may_be_remote(tmp_path: Path, any_root: str) -> None:
    saved_tokenizer(tmp_path / "vit", "vit")
    source = open_storage(f"{any_root}/public")
    for name in ("config.json", "model.safetensors"):
        source.upload(tmp_path / "vit" / name, name)
    made = import_tokenizer(f"{any_root}/runs", "vit", f"{any_root}/public", USE)
    assert made.fingerprint == imported(tmp_path).fingerprint
    file = import_tokenizer(f"{any_root}/runs", "vit", f"{any_root}/public/model.safetensors", USE)
    assert file.fingerprint == made.fingerprint
    assert broken_files(open_storage(f"{any_root}/runs"), made) == []


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path / "vit", "vit")
    weights = tmp_path / "vit" / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    tokenizer, _ = load_tokenizer(open_storage(str(tmp_path / "runs")), imported(tmp_path), CPU)
    assert {tensor.dtype for tensor in tokenizer.state_dict().values()} == {torch.float32}


def test_detok_is_imported_from_one_file(tmp_path: Path) -> None:
    theirs = detok_weights(32, patch=4, dim=5, width=512, depth=1, hidden=48)
    save_file(theirs, tmp_path / "detok.safetensors")
    made = import_tokenizer(str(tmp_path / "runs"), "detok", str(tmp_path / "detok.safetensors"), USE)
    assert made.details["kind"] == "vit"
    tokenizer, _ = load_tokenizer(open_storage(str(tmp_path / "runs")), made, CPU)
    state = from_detok(theirs)
    assert all(torch.equal(tensor, state[name]) for name, tensor in tokenizer.state_dict().items())
    assert made.details["network"]["heads"] == 8


def test_sd_vae_needs_no_config(tmp_path: Path) -> None:
    """What every public file of it has; another is refused."""
    saved_tokenizer(tmp_path / "sd-vae", "sd-vae")
    (tmp_path / "sd-vae" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks \d+ tensors of a sd-vae"):
        imported(tmp_path, "sd-vae")


# --- its life at the root ---


def test_a_whole_import_stays_and_a_broken_one_is_replaced(tmp_path: Path) -> None:
    made, said = imported(tmp_path), list[str]()
    storage = open_storage(str(tmp_path / "runs"))
    again = import_tokenizer(str(tmp_path / "runs"), "vit", str(tmp_path / "vit"), USE, said.append)
    assert again == made
    assert said == [f"# {made.name} is there already"], "what is printed is YAML"
    storage.write(f"{made.name}/weights.safetensors", b"broken")
    with pytest.raises(ContractError, match=f"import tokenizer vit file://{tmp_path}/vit --root"):
        check_not_imported(made, str(tmp_path / "runs"))
    assert imported(tmp_path).content == made.content
    assert broken_files(storage, made) == []
    assert list(storage.list(".work/train-tokenizer")) == []


def test_the_printed_lines_are_a_preset(tmp_path: Path) -> None:
    made = imported(tmp_path, "dc-ae")
    (tmp_path / "mine.yaml").write_text(preset_lines(made) + "\n")
    config = load_config(str(tmp_path / "mine.yaml"), ["data.format=digits", "data.classes=10"], str(tmp_path / "runs"))
    assert stage_fingerprints(config)["train-tokenizer"] == made.fingerprint
    assert (config.grid, config.tokenizer.latent_dim, config.sit_network["latent_dim"]) == (8, 4, 4)


def test_a_run_uses_it_and_trains_none(world: World) -> None:
    made = imported(world.root.parent)
    assert world.run(*sets_of(made)) == [name for name in PLAIN if name != "train-tokenizer"]
    assert world.run(*sets_of(made)) == []
    encode = world.manifest("encode", *sets_of(made))
    assert encode is not None
    assert encode.inputs["train-tokenizer"] == made.fingerprint
    assert encode.input_contents["train-tokenizer"] == made.content
    storage = open_storage(str(world.root))
    config = world.config(*sets_of(made))
    place = load_config("quickstart", [], str(world.root))
    found = config_of(storage, encode, place)
    assert (found.tokenizer.imported, found.encode) == (made.fingerprint, config.encode)
    kept = {print_ for print_ in stage_fingerprints(config).values() if print_}
    assert unneeded(storage, kept) == []
    world.registered.clear()
    others = {print_ for print_ in stage_fingerprints(world.config()).values() if print_}
    assert made not in unneeded(storage, others), "a registered model needs it"


def test_another_import_makes_everything_after_it_anew(world: World) -> None:
    first = imported(world.root.parent)
    second = imported(world.root.parent, use=ImportUse(32, "gain", 0.5))
    world.run(*sets_of(first))
    kept = ("prepare", "train-tokenizer", "reference")
    assert world.run(*sets_of(second)) == [name for name in PLAIN if name not in kept]


def test_without_the_artifact_nothing_starts(world: World) -> None:
    made = imported(world.root.parent, root=str(world.root.parent / "elsewhere"))
    for start in (lambda: world.run(*sets_of(made)), lambda: world.driver(*sets_of(made)).run_stage("encode")):
        with pytest.raises(
            ContractError, match=rf"tokenizer.imported {made.fingerprint[:12]} is not at .*import tokenizer vit"
        ):
            start()
    assert world.connected == 0
    assert world.statuses(*sets_of(made))["train-tokenizer"] == "unresolved"
    plan = make_plan(world.config(*sets_of(made)), survey(world.config(*sets_of(made))))
    assert "is not at" in plan["warnings"][0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("tokenizer.latent_dim=5", "tokenizer.latent_dim is 5, but .* was imported with 3"),
        ("tokenizer.patch_size=8", "tokenizer.patch_size is 8, but .* was imported with 4"),
        ("tokenizer.mask=dct", "tokenizer.mask is dct, but .* was imported with gain"),
        ("tokenizer.kind=sd-vae", "tokenizer.kind is sd-vae, but .* was imported with vit"),
        ("data.image_size=64", "data.image_size is 64, but .* was imported with 32"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(world: World, changed: str, said: str) -> None:
    made = imported(world.root.parent)
    with pytest.raises(ContractError, match=said):
        world.run(*sets_of(made), changed)
    assert world.connected == 0
    config = world.config(*sets_of(made), changed)
    assert any(re.search(said, line) for line in make_plan(config, survey(config))["warnings"])


def test_plan_counts_what_was_imported(world: World) -> None:
    import io

    from rich.console import Console

    made = imported(world.root.parent, "dc-ae")
    config = world.config(*sets_of(made))
    planned, text = make_plan(config, survey(config)), io.StringIO()
    network = random_tokenizer("dc-ae")
    assert planned["tokenizer"]["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    hours = {stage["name"]: stage["device_hours"] for stage in planned["stages"]}
    assert hours["train-tokenizer"] == 0 < hours["encode"]
    print_plan(Console(file=text, width=200), config, planned)
    assert "GMACs) per image, imported\n" in text.getvalue()


def test_the_card_says_where_it_is_from(world: World) -> None:
    made = imported(world.root.parent, "sd-vae")
    config = config_with(made, world.root, "data.classes=10")
    sit = made.model_copy(update={"details": {"network": config.sit_network, "level": 2}, "stage": "train-sit"})
    prepared = made.model_copy(update={"config": {"data.format": "digits"}, "stage": "prepare"})
    samples = made.model_copy(update={"details": {"reference": "5 images"}, "stage": "evaluate-samples"})
    manifests = {"prepare": prepared, "train-tokenizer": made, "train-sit": sit, "evaluate-samples": samples}
    card = model_card(config, manifests, "f" * 64, None)
    assert f"imported from file://{world.root.parent}/sd-vae (sha256 {made.details['source']['sha256']})" in card
    assert "a tokenizer of kind sd-vae" in card


def test_an_exported_tokenizer_is_imported_again(tmp_path: Path) -> None:
    from pipeline.inference import export_tokenizer

    storage, made = open_storage(str(tmp_path / "runs")), imported(tmp_path, "sd-vae")
    files = export_tokenizer(storage, made, tmp_path / "out")
    assert {path.name for path in files} == {"config.json", "diffusion_pytorch_model.safetensors"}
    x = some_images()
    tokenizer, _ = load_tokenizer(storage, made, CPU)
    assert torch.equal(load(tmp_path / "out").encode(x).mean_BDhw, tokenizer.encode(x).mean_BDhw)
    again = import_tokenizer(str(tmp_path / "runs"), "sd-vae", str(tmp_path / "out"), USE)
    assert again.details["network"] == made.details["network"]
    assert read_manifest(storage, "train-tokenizer", again.fingerprint) == again


def test_the_row_of_dc_ae_has_the_fingerprint_of_its_public_file() -> None:
    """The catalogue's, at 256 pixels, whichever version of diffusers has written its config."""
    public = {
        "_class_name": "AutoencoderDC", "_diffusers_version": "0.32.2", "attention_head_dim": 32,
        "decoder_act_fns": "silu", "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
        "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, "decoder_layers_per_block": [3] * 6,
        "decoder_norm_types": "rms_norm", "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
        "downsample_block_type": "Conv", "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
        "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3], "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
        "in_channels": 3, "latent_channels": 32, "scaling_factor": 0.41407, "upsample_block_type": "interpolate",
    }  # fmt: skip
    newer = {"encoder_out_shortcut": True, "decoder_in_shortcut": True, "decoder_conv_act_fn": "relu"}
    for config in (public, {**public, **newer, "downsample_block_type": "conv"}):
        kind, network = described(config, 256)
        assert (kind, network) == ("dc-ae", {"image_size": 256, **DC_AE})
        source = {"sha256": CATALOGUE["dc-ae-f32c32"].files[0].sha256}
        details = {"kind": kind, "network": network, "filter": {"mask": "gain", "keep": 0.25}, "source": source}
        assert load_config("table2/dc-ae").tokenizer.imported == import_fingerprint("train-tokenizer", details)


def test_the_preset_of_sd_vae_has_the_fingerprint_of_its_public_file() -> None:
    """sd-vae-ft-ema of stabilityai at 256 pixels, with or without its config beside it."""
    public = {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
        "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip
    sha256 = CATALOGUE["sd-vae-ft-ema"].files[0].sha256
    for config in (public, _assumed("sd-vae")):
        kind, network = described(config, 256)
        details = {
            "kind": kind,
            "network": network,
            "filter": {"mask": "gain", "keep": 0.25},
            "source": {"sha256": sha256},
        }
        assert load_config("imagenet-sd-vae").tokenizer.imported == import_fingerprint("train-tokenizer", details)
