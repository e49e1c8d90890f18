"""Rows of the paper's tables: what each preset resolves to, with parameters and GFLOPs against the printed ones."""

import re
from typing import NamedTuple

import pytest

from models.sizes import tokenizer_sizes
from pipeline.config import PRESETS, Config, load_config, preset_names
from pipeline.workflow.planning import sit_sizes
from tests.support import PROJECT


class Row(NamedTuple):
    """Of a table: the tokenizer, what the generator sees, and the sizes that the paper prints."""

    kind: str
    trained_by: str
    """The regularizer; of weights that are imported, "imported"."""
    factor: int
    channels: int
    tokens: int
    """As Table 2 counts them: cells of the latent."""
    generator: tuple[int, str, float]
    """Level, alignment and guidance."""
    millions: str
    """Of parameters. Table 3 prints 171M for the ViTs, 84M for SD-VAE, and of DC-AE other weights' 323M."""
    gflops: str
    """As printed in Table 1; of SD-VAE's network they are GMACs, and Table 1 has no DC-AE."""


RAW = (0, "none", 1.0)
FULL = (2, "fda", 1.8)
SD_VAE = Row("sd-vae", "imported", 8, 4, 1024, RAW, "83.65", "445")
EQ_VAE = SD_VAE._replace(trained_by="equivariance")
F16 = {
    16: Row("vit", "spectral", 16, 16, 256, RAW, "171.71", "87.61"),
    32: Row("vit", "spectral", 16, 32, 256, RAW, "171.75", "87.63"),
    64: Row("vit", "spectral", 16, 64, 256, RAW, "171.82", "87.66"),
}
ROWS = {
    "imagenet-f16d16": F16[16]._replace(generator=FULL),
    "imagenet-f16d32": F16[32]._replace(generator=FULL),
    "imagenet-f16d64": F16[64]._replace(generator=FULL),
    "imagenet-f16d16-vanilla": F16[16]._replace(trained_by="none"),
    "imagenet-sd-vae": SD_VAE,
    "table1/sd-vae": SD_VAE,
    "table1/eq-vae": EQ_VAE,
    "table1/f16d16-mlsr": F16[16],
    "table1/f16d32-mlsr": F16[32],
    "table1/f16d64-mlsr": F16[64],
    "table2/sd-vae": SD_VAE,
    "table2/eq-vae": EQ_VAE,
    "table2/dc-ae": Row("dc-ae", "imported", 32, 32, 64, RAW, "312.25", "423"),
    "table2/ours": F16[32]._replace(generator=FULL),
    "table4/f16d16": F16[16],
    "table4/f16d32": F16[32],
    "table4/f16d64": F16[64],
    "table6/eq-vae": F16[16]._replace(trained_by="equivariance"),
}


@pytest.mark.parametrize("preset", ROWS)
def test_what_a_row_resolves_to(preset: str) -> None:
    own = load_config(preset)
    tokenizer = own.tokenizer
    sizes = tokenizer_sizes(tokenizer.kind, own.tokenizer_network)
    printed = f"{sizes.gflops:.2f}" if tokenizer.kind == "vit" else f"{sizes.gmacs:.0f}"
    assert ROWS[preset] == Row(
        tokenizer.kind,
        tokenizer.regularizer if tokenizer.imported is None else "imported",
        tokenizer.patch_size,
        tokenizer.latent_dim,
        own.grid**2,
        (own.sit.level, own.sit.alignment, own.sample.guidance),
        f"{sizes.parameters / 1e6:.2f}",
        printed,
    )


@pytest.mark.parametrize("preset", ROWS)
def test_what_is_held_constant_across_settings(preset: str) -> None:
    """Section 4: ImageNet at 256 pixels, 500K steps of 512, SiT-XL for 80 epochs, one way to measure."""
    own, ours = load_config(preset), load_config("imagenet-f16d32")
    assert (own.data, own.encode, own.evaluate) == (ours.data, ours.encode, ours.evaluate)
    assert (own.data.image_size, own.data.classes, own.evaluate.network) == (256, 1000, "inception")
    assert own.evaluate.lpips is not None
    assert own.sample == ours.sample.model_copy(update={"guidance": own.sample.guidance})
    generator = {"patch_size": own.sit.patch_size, "level": own.sit.level, "alignment": own.sit.alignment}
    assert own.sit == ours.sit.model_copy(update=generator)
    assert (own.sit.size, own.sit.steps, own.sit.batch_size, own.sit.learning_rate) == ("XL", 400_000, 256, 1e-4)
    assert f"{sit_sizes(own)['parameters'] / 1e6:.0f}" == "675"
    if own.tokenizer.imported is None:
        network = {name: getattr(own.tokenizer, name) for name in ("kind", "patch_size", "latent_dim", "regularizer")}
        assert own.tokenizer == ours.tokenizer.model_copy(update=network)
        assert (own.tokenizer.steps, own.tokenizer.batch_size, own.tokenizer.learning_rate) == (500_000, 512, 1e-4)


# README's recipes: the row, one of its presets, what is set, and level, alignment, guidance and steps of the generator.
RECIPES = [
    ('Table 1, "MLSR"', "table1/f16d64-mlsr", "", (*RAW, 400_000)),
    ('Table 1, "+ Denoising"', "table1/f16d64-mlsr", "sit.level=2", (2, "none", 1.0, 400_000)),
    ('Table 1, "+ FDA"', "table1/f16d64-mlsr", "sit.level=2 sit.alignment=fda", (2, "fda", 1.0, 400_000)),
    ('Table 3, "SiT-XL + Ours"', "imagenet-f16d32", "sit.steps=4000000", (*FULL, 4_000_000)),
    ("Table 4, gFID by level", "table4/f16d32", "sit.level=3", (3, "none", 1.0, 400_000)),
    ("Table 5, alignment methods", "table1/f16d32-mlsr", "sit.level=2 sit.alignment=sra", (2, "sra", 1.0, 400_000)),
    ('Table 6, "Denoising-VAE"', "table1/f16d16-mlsr", "sit.level=2 sit.steps=100000", (2, "none", 1.0, 100_000)),
    ('Table 6, "EQ-VAE"', "table6/eq-vae", "sit.steps=200000", (*RAW, 200_000)),
]


@pytest.mark.parametrize(("row", "preset", "sets", "expected"), RECIPES)
def test_the_recipes_of_the_readme(row: str, preset: str, sets: str, expected: tuple[object, ...]) -> None:
    own = load_config(preset, sets.split())
    assert (own.sit.level, own.sit.alignment, own.sample.guidance, own.sit.steps) == expected
    named, presets = {}, ""
    for line in (PROJECT / "README.md").read_text().splitlines():
        if line.startswith("| Table"):
            _, name, cell, settings, _ = (word.strip() for word in line.split("|"))
            presets = presets if cell == "the same" else cell
            named[name] = (presets, settings)
    presets, settings = named[row]
    assert f"`{preset}`" in presets
    for override in sets.split():
        field, _, value = override.partition("=")
        assert field in settings
        assert re.search(rf"\b{value}\b", settings), settings


def test_every_preset_of_the_readme_is_there() -> None:
    named = set(re.findall(r"`(table\d/[\w-]+)`", (PROJECT / "README.md").read_text()))
    assert named == {name for name in preset_names() if "/" in name}


@pytest.mark.parametrize("preset", ["table1/sd-vae", "table1/eq-vae"])
def test_sit_has_as_many_tokens_for_f8_as_for_f16(preset: str) -> None:
    own = load_config(preset)
    assert (own.grid // own.sit.patch_size) ** 2 == 256


def test_every_row_is_here_and_is_another_experiment() -> None:
    """One that resolves to what another does is an `extends` of it and nothing else."""
    assert {name for name in preset_names() if "/" in name} <= ROWS.keys()
    found = dict[str, Config]()
    for name in sorted(ROWS, key=lambda name: ("/" in name, name)):
        resolved = load_config(name)
        text = (PRESETS / f"{name}.yaml").read_text()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        same = [other for other, config in found.items() if config == resolved]
        assert (len(lines) == 1) == bool(same), (name, same)
        found[name] = resolved


def test_a_tokenizer_that_is_imported_needs_no_weights_to_train_with() -> None:
    from pipeline.weights import weights_used

    for name, row in ROWS.items():
        used = {f"{use.section}.{use.field}" for use in weights_used(load_config(name))}
        training = {"tokenizer.lpips", "tokenizer.convnext"} if row.trained_by != "imported" else set()
        assert used == {"evaluate.lpips", "evaluate.network_weights"} | training
