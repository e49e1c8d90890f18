"""A generator that was not trained here is an artifact as a trained one: what is imported, its use, and its export."""

import argparse
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from models.choices import PublicSit
from models.sit import SiT
from pipeline.artifacts import Manifest, all_manifests, broken_files
from pipeline.cli.exchange import export_sit as export_command
from pipeline.cli.exchange import import_sit as import_command
from pipeline.config import load_config
from pipeline.errors import ConfigError, ContractError, PipelineError, StorageError
from pipeline.inference import export_sit, weights_names
from pipeline.inference.networks import load_sit
from pipeline.reports import model_card
from pipeline.storage import open_storage
from pipeline.workflow import config_of, import_sit, make_plan, public_kind, stage_fingerprints, survey, unneeded
from pipeline.workflow.imported_sit import sit_preset_lines
from pipeline.workflow.importing import check_not_imported
from pipeline.workflow.planning import print_plan
from tests.pipeline.workflow.world import World
from tests.support.artifacts import artifact_writer, manifest, put
from tests.support.public_sit import HEADS, SMALL, Weights, public_sit, public_weights
from tests.support.stages import PLAIN

CPU = torch.device("cpu")
DIGITS = {**SMALL, "classes": 10}  # as the quickstart has: 4 x 8 x 8 latents of 10 classes


def saved(file: Path, kind: PublicSit, weights: Weights | None = None) -> Weights:
    """A checkpoint as the public trainings write it; of SiT's kind, as it is published."""
    weights = weights or public_weights(kind, **DIGITS)
    file.parent.mkdir(parents=True, exist_ok=True)
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    settings = argparse.Namespace(model="SiT-XL/2", num_classes=1000, cfg_prob=0.1, resume_ckpt=None)
    torch.save(weights if kind == "sit" else {"model": other, "ema": weights, "args": settings, "steps": 7}, file)
    return weights


def imported(folder: Path, kind: PublicSit = "sit", root: Path | None = None) -> Manifest:
    """One of random weights; the root is `folder`/runs."""
    file = folder / f"{kind}.pt"
    if not file.exists():
        saved(file, kind)
    return import_sit(str(root or folder / "runs"), kind, str(file), HEADS)


def chosen_of(made: Manifest) -> list[str]:
    """The overrides that use a public one, whose latents are as the tokenizer makes them."""
    return [f"sit.imported={made.fingerprint}", "sit.level=0"]


def refusal(folder: Path, kind: PublicSit, file: Path | str, heads: int | None = HEADS) -> str:
    with pytest.raises(PipelineError) as caught:
        import_sit(str(folder / "runs"), kind, str(file), heads)
    assert all_manifests(open_storage(str(folder / "runs"))) == []
    line = str(caught.value)
    assert Path(file).name in line
    assert "\n" not in line
    return line


# --- the import ---


@pytest.mark.parametrize("kind", ["sit", "repa", "sra"])
def test_an_import_is_used_as_a_trained_generator_is(tmp_path: Path, kind: PublicSit) -> None:
    made = imported(tmp_path, kind)
    storage = open_storage(str(tmp_path / "runs"))
    assert all_manifests(storage) == [made]
    assert broken_files(storage, made) == []
    z, t, label = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([3, 10])
    weights = public_weights(kind, **DIGITS)
    expected = -public_sit(weights, z, 1 - t, label) if kind == "sit" else public_sit(weights, z, t, label)
    torch.testing.assert_close(load_sit(storage, made, CPU)(z, t, label), expected, atol=1e-5, rtol=1e-5)
    details = {name: made.details[name] for name in ("level", "path", "prediction", "statistics")}
    statistics = {"mean": [0.0] * 4, "std": [1 / 0.18215] * 4}
    assert details == {"level": 0, "path": "linear", "prediction": "velocity", "statistics": statistics}


def test_the_content_counts_and_the_place_does_not(tmp_path: Path) -> None:
    first = imported(tmp_path, "repa")
    assert first.details["source"]["uri"] == (tmp_path / "repa.pt").as_uri()
    assert len(first.details["source"]["sha256"]) == 64
    (tmp_path / "moved").mkdir()
    (tmp_path / "repa.pt").rename(tmp_path / "moved" / "repa.pt")
    assert imported(tmp_path / "moved", "repa").fingerprint == first.fingerprint
    weights = public_weights("repa", **DIGITS)
    weights["final_layer.linear.bias"] *= 2
    saved(tmp_path / "other" / "repa.pt", "repa", weights)
    assert imported(tmp_path / "other", "repa").fingerprint != first.fingerprint


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in public_weights("sra", **DIGITS).items()}
    save_file(weights, tmp_path / "sra.safetensors")
    made = import_sit(str(tmp_path / "runs"), "sra", str(tmp_path / "sra.safetensors"), HEADS)
    network = load_sit(open_storage(str(tmp_path / "runs")), made, CPU)
    assert torch.equal(network.time_out.weight, weights["t_embedder.mlp.2.weight"].float())


def test_a_whole_import_stays_and_a_broken_one_is_replaced(tmp_path: Path) -> None:
    made, said = imported(tmp_path), list[str]()
    storage = open_storage(str(tmp_path / "runs"))
    assert import_sit(str(tmp_path / "runs"), "sit", str(tmp_path / "sit.pt"), HEADS, said.append) == made
    assert said == [f"# {made.name} is there already"]
    storage.write(f"{made.name}/weights.safetensors", b"broken")
    with pytest.raises(ContractError, match=f"import sit sit file://{tmp_path}/sit.pt --root"):
        check_not_imported(made, str(tmp_path / "runs"))
    assert imported(tmp_path).content == made.content
    assert broken_files(storage, made) == []


class Code:
    """A pickle of it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("never",)


def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"ema": public_weights("sit", **DIGITS), "args": Code()}, tmp_path / "sit.pt")
    line = refusal(tmp_path, "sit", tmp_path / "sit.pt")
    assert "holds more than tensors, and its code is not run (print)" in line
    assert capsys.readouterr().out == ""


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "repa.pt", "repa")
    line = refusal(tmp_path, "sit", tmp_path / "repa.pt")
    assert "final_layer.linear.weight is (16, 24), not (32, 24) as in a sit of this size" in line
    assert "another KIND" in line
    assert "no SiT is 24 wide" in refusal(tmp_path, "repa", tmp_path / "repa.pt", None)
    assert "heads (5)" in refusal(tmp_path, "repa", tmp_path / "repa.pt", 5)
    assert "is missing" in refusal(tmp_path, "sit", tmp_path / "no.pt")
    assert "is no weights of a SiT" in refusal(tmp_path, "sit", tmp_path)
    (tmp_path / "text.pt").write_text("no pickle")
    assert "is not a file of torch" in refusal(tmp_path, "sit", tmp_path / "text.pt")
    torch.save({"ema": {"steps": 3}}, tmp_path / "empty.pt")
    assert "holds no state dict" in refusal(tmp_path, "sit", tmp_path / "empty.pt")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_embedder.proj.bias": torch.full((24,), torch.nan)}, "embed.bias is not finite"),
        ({"x_embedder.proj.bias": torch.ones(24, dtype=torch.int32)}, "x_embedder.proj.bias is of torch.int32"),
        ({"x_embedder.proj.bias": torch.ones(24).to_sparse()}, "x_embedder.proj.bias is no plain tensor with values"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, changes: Weights, said: str) -> None:
    saved(tmp_path / "sit.pt", "sit", {**public_weights("sit", **DIGITS), **changes})
    assert said in refusal(tmp_path, "sit", tmp_path / "sit.pt")


def test_latents_of_an_unknown_scale_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "sra.pt", "sra", public_weights("sra", **{**DIGITS, "dim": 16}))
    assert "is for latents of 16 channels, whose scale is not known" in refusal(tmp_path, "sra", tmp_path / "sra.pt")


def test_dit_is_refused() -> None:
    with pytest.raises(ConfigError, match="a DiT predicts the noise on a discrete schedule of 1000 steps"):
        public_kind("dit")
    with pytest.raises(ConfigError, match=r"KIND mit is unknown\. Use one of sit, repa, sra"):
        public_kind("mit")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("DiT-XL-2-256x256.pt", True),
        ("my_dit.pt", True),
        ("LightDiT.pt", True),
        ("edited.pt", False),
        ("SiT.pt", False),
    ],
)
def test_a_file_with_the_name_of_a_dit_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: bool
) -> None:
    """In one line, so that what is printed is a preset still."""
    saved(tmp_path / name, "sit")
    import_command("sit", str(tmp_path / name), HEADS, None, str(tmp_path / "runs"))
    printed = capsys.readouterr().out
    warning = f"# warning: {name} is a DiT's by its name."
    assert [line.startswith(warning) for line in printed.splitlines() if "warning" in line] == [True] * told
    assert set(yaml.safe_load(printed)) == {"extends", "data", "sit"}


# --- its use ---


def test_a_run_uses_it_and_trains_none(world: World) -> None:
    made = imported(world.root.parent)
    chosen = chosen_of(made)
    assert world.run(*chosen) == [name for name in PLAIN if name != "train-sit"]
    assert world.run(*chosen) == []
    sample = world.manifest("sample", *chosen)
    assert sample is not None
    assert sample.inputs["train-sit"] == made.fingerprint
    assert sample.input_contents["train-sit"] == made.content
    storage = open_storage(str(world.root))
    assert config_of(storage, sample, load_config("quickstart", [], str(world.root))).sit.imported == made.fingerprint
    kept = {print_ for print_ in stage_fingerprints(world.config(*chosen)).values() if print_}
    assert unneeded(storage, kept) == []


def test_the_config_of_what_was_made_with_it_is_found_at_any_seed(world: World) -> None:
    """The import has fields of its own, such as a seed, that nobody chose."""
    chosen = [*chosen_of(imported(world.root.parent)), "seed=3"]
    world.run(*chosen)
    sample = world.manifest("sample", *chosen)
    assert sample is not None
    found = config_of(open_storage(str(world.root)), sample, load_config("quickstart", [], str(world.root)))
    assert stage_fingerprints(found)["sample"] == sample.fingerprint
    assert found.seed == 3


def test_an_average_that_it_has_not_is_missed_before_anything_starts(world: World) -> None:
    chosen = [*chosen_of(imported(world.root.parent)), "sample.ema_decay=0.99"]
    with pytest.raises(ContractError, match=r"has one average alone, not 0\.99"):
        world.run(*chosen)
    assert world.made == []


def test_a_generator_of_another_tokenizers_latents_is_refused(world: World) -> None:
    """One of our own may be used as it is, but its latents are those of one tokenizer."""
    world.run("seed=3")
    made, tokenizer = world.manifest("train-sit", "seed=3"), world.manifest("train-tokenizer", "seed=3")
    assert made is not None
    assert tokenizer is not None
    chosen = f"sit.imported={made.fingerprint}"
    with pytest.raises(ContractError, match=rf"was trained on latents of train-tokenizer/{tokenizer.fingerprint[:12]}"):
        world.run(chosen, "seed=4")
    assert world.run(chosen, "seed=3") == []


def test_without_the_artifact_nothing_starts(world: World) -> None:
    made = imported(world.root.parent, root=world.root.parent / "elsewhere")
    chosen = f"sit.imported={made.fingerprint}"
    with pytest.raises(ContractError, match=rf"sit.imported {made.fingerprint[:12]} is not at .*import sit KIND"):
        world.run(chosen)
    assert world.connected == 0
    assert world.statuses(chosen)["train-sit"] == "unresolved"
    assert "is not at" in make_plan(world.config(chosen), survey(world.config(chosen)))["warnings"][0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("tokenizer.latent_dim=5", "tokenizer.latent_dim is 5, but .* was imported with 4"),
        ("sit.level=1", "sit.level is 1, but .* was imported with 0. Set sit.level=0"),
        ("data.classes=11", "data.classes is 11, but .* was imported with 10"),
        ("data.image_size=64", "16 x 16, but .* is for 8 x 8. Set data.image_size=32"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(world: World, changed: str, said: str) -> None:
    chosen = chosen_of(imported(world.root.parent))
    with pytest.raises(ContractError, match=said):
        world.run(*chosen, changed)
    assert world.connected == 0
    config = world.config(*chosen, changed)
    assert any(re.search(said, line) for line in make_plan(config, survey(config))["warnings"])


def test_plan_counts_what_was_imported(world: World) -> None:
    made, text = imported(world.root.parent), io.StringIO()
    config = world.config(f"sit.imported={made.fingerprint}")
    planned = make_plan(config, survey(config))
    network = SiT(**made.details["network"])
    assert planned["sit"]["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    hours = {stage["name"]: stage["device_hours"] for stage in planned["stages"]}
    assert hours["train-sit"] == 0 < hours["sample"]
    print_plan(Console(file=text, width=200), config, planned)
    assert re.search(r"sit .* GFLOPs per image, imported\n", text.getvalue())


def test_the_printed_lines_are_a_preset(tmp_path: Path) -> None:
    made = imported(tmp_path)
    (tmp_path / "mine.yaml").write_text(sit_preset_lines(made).replace("image_size: 64", "image_size: 256"))
    config = load_config(str(tmp_path / "mine.yaml"), [], str(tmp_path / "runs"))
    assert stage_fingerprints(config)["train-sit"] == made.fingerprint
    assert (config.data.classes, config.tokenizer.kind) == (10, "sd-vae")


def test_the_card_says_where_it_is_from(world: World) -> None:
    made = imported(world.root.parent)
    tokenizer = made.model_copy(update={"stage": "train-tokenizer", "details": {
        "kind": "vit", "network": world.config().tokenizer_network}})  # fmt: skip
    prepared = made.model_copy(update={"config": {"data.format": "digits"}, "stage": "prepare"})
    samples = made.model_copy(update={"details": {"reference": "5 images"}, "stage": "evaluate-samples"})
    manifests = {"prepare": prepared, "train-tokenizer": tokenizer, "train-sit": made, "evaluate-samples": samples}
    card = model_card(world.config(), manifests, "f" * 64, None)
    sha256 = made.details["source"]["sha256"]
    assert (
        f"The generator was not trained here but imported from file://{world.root.parent}/sit.pt (sha256 {sha256})"
        in card
    )
    assert "tokenizer was not trained" not in card


# --- the export ---


@pytest.mark.parametrize("kind", ["sit", "repa", "sra"])
def test_an_exported_generator_is_imported_again(tmp_path: Path, kind: PublicSit) -> None:
    made, storage = imported(tmp_path, "sit"), open_storage(str(tmp_path / "runs"))
    file = tmp_path / "out" / "sit.pt"
    export_sit(storage, made, None, kind, file)
    theirs = torch.load(file, weights_only=True)["ema"]
    assert theirs.keys() == public_weights(kind, **DIGITS).keys()
    again = import_sit(str(tmp_path / "runs"), kind, str(file), HEADS)
    assert again.details["network"] == made.details["network"]
    first, second = (load_sit(storage, one, CPU).state_dict() for one in (made, again))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-6 if name == "time_in.weight" else 0, rtol=0)
    with pytest.raises(StorageError, match=r"sit.pt is there already. Choose another file with --to"):
        export_sit(storage, made, None, kind, file)


def test_the_average_that_is_sampled_is_exported(tmp_path: Path, world: World) -> None:
    """The command takes the preset's sample.ema_decay; without one, and of an import, the first."""
    made = imported(tmp_path, "sit", world.root)
    first = load_file(world.root / made.name / "weights.safetensors")
    second = {name: tensor + 1 for name, tensor in first.items()}
    config = world.config("sit.ema_decays=[0.5]", "sit.level=0", "sit.alignment=none")
    writer = artifact_writer(config, "train-sit")
    for decay, name in weights_names("weights", config.sit.averages).items():
        save_file(second if decay == 0.5 else first, tmp_path / name)
        writer.add(tmp_path / name, name)
    details = {**made.details, "averages": config.sit.averages}
    del details["source"]
    put(config, manifest(config, "train-sit", writer, {}, **details))
    theirs: dict[str, torch.Tensor] = {}
    for named in ("null", "0.99", "0.5"):
        sets = ["sit.ema_decays=[0.5]", "sit.level=0", "sit.alignment=none", f"sample.ema_decay={named}"]
        export_command("sit", "quickstart", tmp_path / f"{named}.pt", sets, str(world.root))
        theirs[named] = torch.load(tmp_path / f"{named}.pt", weights_only=True)["ema"]["final_layer.linear.bias"]
    assert torch.equal(theirs["null"], theirs["0.99"])
    assert not torch.equal(theirs["null"], theirs["0.5"])
    with pytest.raises(ContractError, match=r"has one average alone, not 0\.5"):
        export_sit(open_storage(str(world.root)), made, 0.5, "sit", tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "vp"}, "has path vp, and repa samples with linear"),
        ({"prediction": "noise"}, "has prediction noise, and repa samples with velocity"),
        ({"time_scale": 1000.0}, "time_scale is 1000, and repa embeds t itself"),
    ],
)
def test_what_public_code_does_not_sample_is_not_exported(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    made, storage = imported(tmp_path), open_storage(str(tmp_path / "runs"))
    network = {**made.details["network"], **{name: value for name, value in changes.items() if name == "time_scale"}}
    other = made.model_copy(update={"details": {**made.details, **changes, "network": network}})
    with pytest.raises(ContractError, match=said):
        export_sit(storage, other, None, "repa", tmp_path / "repa.pt")
    assert not (tmp_path / "repa.pt").exists()


def test_weights_of_a_root_are_whole(tmp_path: Path) -> None:
    """What is written is what loads, in fp32 and nothing else."""
    made = imported(tmp_path)
    tensors = load_file(tmp_path / "runs" / made.name / "weights.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert tensors.keys() == SiT(**made.details["network"]).state_dict().keys()
