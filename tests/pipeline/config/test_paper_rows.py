"""Rows of the paper's tables: what each preset resolves to, with parameters and GFLOPs against the printed ones."""

import re
from typing import NamedTuple

import pytest

from models.choices import EVALUATIONS
from models.sizes import tokenizer_sizes
from pipeline.config import PRESETS, Config, load_config, preset_names
from pipeline.workflow import sit_sizes, stage_fingerprints
from tests.support import paper_rows


class Generator(NamedTuple):
    """What it is trained on and how it is drawn from."""

    level: int
    alignment: tuple[str, float, str, str, tuple[int, int]]
    """Kind, weight, its schedule over t, the features' distance, and the aligned blocks of student and teacher."""
    guidance: float
    interval: tuple[float, float]
    steps: int


class Row(NamedTuple):
    """Of a table: the tokenizer, what the generator sees, and the sizes that the paper prints."""

    kind: str
    trained_by: str
    """The regularizer; of weights that are imported, "imported"."""
    factor: int
    channels: int
    tokens: int
    """As Table 2 counts them: cells of the latent."""
    generator: Generator
    millions: str
    """Of parameters. Table 3 prints 171M for the ViTs, 84M for SD-VAE, and of DC-AE other weights' 323M."""
    gflops: str
    """As printed in Table 1; of SD-VAE's network they are GMACs, and Table 1 has no DC-AE."""


BLOCKS = (8, 20)  # of XL, in SRA's script
ALIGNED = {
    "none": ("none", 0.0, "constant", "l2", BLOCKS),
    "sra": ("sra", 0.2, "constant", "smooth_l1", BLOCKS),
    "fda": ("fda", 0.25, "linear", "cosine", BLOCKS),
}
EPOCHS_80 = 400_000  # steps of 256 of the 1.28M images


def generator(level: int, alignment: str = "none", guidance: float = 1.0, steps: int = EPOCHS_80) -> Generator:
    """On the latents of this level; its guidance, if any, acts at all times."""
    return Generator(level, ALIGNED[alignment], guidance, (0.0, 1.0), steps)


RAW, DENOISED, FDA = generator(0), generator(2), generator(2, "fda")
FULL = FDA._replace(guidance=1.8)
SD_VAE = Row("sd-vae", "imported", 8, 4, 1024, RAW, "83.65", "445")
EQ_VAE = SD_VAE._replace(trained_by="equivariance")
F16 = {
    16: Row("vit", "spectral", 16, 16, 256, RAW, "171.71", "87.61"),
    32: Row("vit", "spectral", 16, 32, 256, RAW, "171.75", "87.63"),
    64: Row("vit", "spectral", 16, 64, 256, RAW, "171.82", "87.66"),
}
ROWS = {
    "imagenet-f16d16-vanilla": F16[16]._replace(trained_by="none"),
    "imagenet-sd-vae": SD_VAE,
    "table1/sd-vae": SD_VAE,
    "table1/eq-vae": EQ_VAE,
    "table2/sd-vae": SD_VAE,
    "table2/eq-vae": EQ_VAE,
    "table2/dc-ae": Row("dc-ae", "imported", 32, 32, 64, RAW, "312.25", "423"),
    "table2/ours": F16[32]._replace(generator=FULL),
    "table3/ours": F16[32]._replace(generator=FULL._replace(steps=10 * EPOCHS_80)),
    "table5/none": F16[32]._replace(generator=DENOISED),
    "table5/sra": F16[32]._replace(generator=generator(2, "sra")),
    "table5/fda": F16[32]._replace(generator=FDA),
    "table6/eq-vae": F16[16]._replace(trained_by="equivariance"),
    "table6/denoised": F16[16]._replace(generator=DENOISED),
}
for d, row in F16.items():
    ROWS[f"imagenet-f16d{d}"] = row._replace(generator=FULL)
    ROWS[f"table1/f16d{d}-mlsr"] = ROWS[f"table4/f16d{d}"] = row
    ROWS[f"table1/f16d{d}-denoised"] = row._replace(generator=DENOISED)
    ROWS[f"table1/f16d{d}-fda"] = row._replace(generator=FDA)
    for level in (1, 2, 3):
        ROWS[f"table4/f16d{d}-level{level}"] = row._replace(generator=generator(level))


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
        Generator(
            own.sit.level,
            (own.sit.alignment, *own.sit.alignment_settings, own.sit.aligned_blocks),
            own.sample.guidance,
            own.sample.guidance_interval,
            own.sit.steps,
        ),
        f"{sizes.parameters / 1e6:.2f}",
        printed,
    )


@pytest.mark.parametrize("preset", ROWS)
def test_what_is_held_constant_across_settings(preset: str) -> None:
    """Section 4: ImageNet at 256 pixels, 500K steps of 512, SiT-XL in batches of 256, one way to measure."""
    own, ours = load_config(preset), load_config("imagenet-f16d32")
    assert (own.data, own.encode, own.evaluate) == (ours.data, ours.encode, ours.evaluate)
    assert (own.data.image_size, own.data.classes, own.evaluate.network) == (256, 1000, "inception")
    assert own.evaluate.lpips is not None
    assert own.sample == ours.sample.model_copy(update={"guidance": own.sample.guidance})
    changed = {name: getattr(own.sit, name) for name in ("patch_size", "level", "alignment", "steps", "milestones")}
    assert own.sit == ours.sit.model_copy(update=changed)
    assert (own.sit.size, own.sit.batch_size, own.sit.learning_rate) == ("XL", 256, 1e-4)
    assert (own.sample.method, EVALUATIONS["sde"](own.sample.steps)) == ("sde", 250)
    assert f"{sit_sizes(own)['parameters'] / 1e6:.0f}" == "675"
    if own.tokenizer.imported is None:
        network = {name: getattr(own.tokenizer, name) for name in ("kind", "patch_size", "latent_dim", "regularizer")}
        assert own.tokenizer == ours.tokenizer.model_copy(update=network)
        assert (own.tokenizer.steps, own.tokenizer.batch_size, own.tokenizer.learning_rate) == (500_000, 512, 1e-4)


def test_table_6_is_two_curves_over_its_columns() -> None:
    for preset in ("table6/denoised", "table6/eq-vae"):
        assert load_config(preset).sit.milestones == (100_000, 200_000, 400_000)


def test_the_table_of_the_readme_is_that_of_the_presets() -> None:
    assert paper_rows.written() == paper_rows.table(), "run `python -m tests.support.paper_rows`"
    assert len(paper_rows.table().splitlines()) == len(paper_rows.HEAD) + len(paper_rows.rows())


def test_every_preset_of_the_readme_is_there() -> None:
    named = set(re.findall(r"`(table\d/[\w-]+)`", paper_rows.README.read_text()))
    assert named == set(paper_rows.rows())


@pytest.mark.parametrize(
    ("preset", "same"),
    [
        ("table4/f16d16", "table1/f16d16-mlsr"),
        ("table4/f16d64-level2", "table1/f16d64-denoised"),
        ("table5/none", "table1/f16d32-denoised"),
        ("table5/fda", "table1/f16d32-fda"),
        ("table6/denoised", "table1/f16d16-denoised"),
    ],
)
def test_a_row_of_two_tables_is_made_once(preset: str, same: str) -> None:
    """And the paper prints one gFID for it, to the digits of the shorter."""
    assert load_config(preset) == load_config(same)
    here, there = (paper_rows.header(name).gfid.rpartition(" ")[2] for name in (preset, same))
    assert f"{float(there):.1f}" == here or there == here


def test_a_generator_is_trained_once_for_both_ways_to_draw() -> None:
    """The ablation without guidance and the preset with it share everything up to `sample`."""
    sets = [f"data.revision={'ab' * 32}", "data.uri=s3://bucket/images", "tokenizer.perceptual=none"]
    sets += ["evaluate.network=efficientnet_lite0", "evaluate.network_weights=null", "evaluate.lpips=null"]
    sets += ["register.gate.metric=samples/frechet_distance/efficientnet_lite0"]
    one, other = (stage_fingerprints(load_config(name, sets)) for name in ("table1/f16d32-fda", "imagenet-f16d32"))
    assert [stage for stage in one if one[stage] != other[stage]] == [
        "sample",
        "evaluate-samples",
        "register",
        "convergence",
    ]


@pytest.mark.parametrize("preset", ["table1/sd-vae", "table1/eq-vae"])
def test_sit_has_as_many_tokens_for_f8_as_for_f16(preset: str) -> None:
    own = load_config(preset)
    assert (own.grid // own.sit.patch_size) ** 2 == 256


def test_every_row_is_here_and_is_another_experiment() -> None:
    """One that resolves to what another does is an `extends` of it and nothing else."""
    assert set(paper_rows.rows()) | {name for name in preset_names() if "imagenet" in name} == ROWS.keys()
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
