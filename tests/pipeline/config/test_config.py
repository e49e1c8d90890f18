"""The tree: every field counts somewhere, nothing wrong gets in, and a fingerprint moves exactly when it should."""

import ast
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from models.sizes import sit_parameters
from pipeline.config.loading import PRESETS, load_config, preset_label, preset_names
from pipeline.config.schema import Config
from pipeline.errors import ConfigError
from tests.support import PROJECT


def leaves(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields that are no sections."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


LEAVES = list(leaves())


# --- every field is read ---


class Stripped(ast.NodeTransformer):
    """The schema without its fields, and without validators: one that looks at a field does not use it."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.body = [part for part in node.body if not (self._is_field(part) or self._is_validator(part))] or [
            ast.Pass()
        ]
        return node

    def _is_field(self, part: ast.stmt) -> bool:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            return False
        return not ast.unparse(part.annotation).endswith("Config")  # a section stays, or nothing below it would be read

    def _is_validator(self, part: ast.stmt) -> bool:
        decorators = getattr(part, "decorator_list", [])
        return any("validator" in ast.unparse(decorator) for decorator in decorators)


@pytest.mark.slow
def test_every_field_is_read(tmp_path):
    """By types: mypy is given the schema without its fields, and says who misses which of which section."""
    shadows = []
    for name in ("schema", "tokenizer", "generator", "fields"):
        path = PROJECT / "pipeline" / "config" / f"{name}.py"
        stripped = tmp_path / f"{name}.py"
        stripped.write_text(ast.unparse(Stripped().visit(ast.parse(path.read_text()))))
        shadows += ["--shadow-file", str(path), str(stripped)]
    cache = PROJECT / ".mypy_cache" / "without-fields"
    command = [sys.executable, "-m", "mypy", *shadows, "--cache-dir", str(cache), "-p", "models", "-p", "pipeline"]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False).stdout
    missed = set(re.findall(r'(?:error: |Item )"(\w+)"(?: of ".*")? has no attribute "(\w+)"', said))
    assert "Found" in said, said
    read = {f"{section}.{field}".lstrip(".") for kind, field in missed for section in sections_of(kind)}
    assert sorted(name for name in LEAVES if name not in read) == []


def sections_of(kind: str) -> list[str]:
    """The dotted names of the parts of the tree that are of this class, or of one made of it."""

    def within(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
        yield prefix.rstrip("."), model
        for name, field in model.model_fields.items():
            for inner in (field.annotation, *get_args(field.annotation)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from within(inner, f"{prefix}{name}.")

    return [name for name, model in within(Config, "") if kind in {base.__name__ for base in model.__mro__}]


def test_every_field_has_a_description():
    def bare(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from bare(kind)
            elif not field.description:
                yield name

    assert list(bare(Config)) == []


# --- presets and what is refused ---


@pytest.mark.parametrize("preset", preset_names())
def test_presets_load(preset):
    config = load_config(preset)
    assert Config.model_validate(config.model_dump()) == config
    assert Config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_the_presets_are_those_of_the_interface():
    """Those outside of folders; rows of the paper's tables are in test_paper_rows.py."""
    assert [name for name in preset_names() if "/" not in name] == [
        "cifar10", "imagenet-f16d16", "imagenet-f16d16-vanilla", "imagenet-f16d32", "imagenet-f16d64",
        "imagenet-sd-vae", "quickstart",
    ]  # fmt: skip


def test_a_preset_in_a_folder_has_its_folders_name(tmp_path):
    """Everywhere: as an argument, as a parent, and with a dash in names of files and jobs."""
    assert "table1/f16d32-mlsr" in preset_names()
    (tmp_path / "mine.v2.yaml").write_text("extends: table1/f16d32-mlsr\nsit: {steps: 7}\n")
    own = load_config(str(tmp_path / "mine.v2.yaml"))
    assert (own.tokenizer.latent_dim, own.sit.level, own.sit.steps) == (32, 0, 7)
    labels = [
        preset_label(name)
        for name in ("table1/f16d32-mlsr", "sent:table1-f16d32-mlsr", "a/mine.v2.yaml", "sent:mine.v2")
    ]
    assert labels == ["table1-f16d32-mlsr", "table1-f16d32-mlsr", "mine.v2", "mine.v2"]
    for name in ("f16d32-mlsr", "table1/f16d32-mslr", "table1/../table1/f16d32-mlsr"):
        with pytest.raises(ConfigError, match=f"unknown preset '{name}'.* Did you mean 'table1/f16d32-mlsr'"):
            load_config(name)
    with pytest.raises(ConfigError, match=r"the preset file .*/nothing\.yaml is missing"):
        load_config(str(tmp_path / "nothing.yaml"))


def test_every_preset_begins_with_what_it_is():
    """`config list` prints the first line."""
    for name in preset_names():
        first = (PRESETS / f"{name}.yaml").read_text().splitlines()[0]
        assert re.fullmatch(r"# .{30,118}\.", first), name


def test_an_installation_has_the_presets_of_all_folders():
    """package-data of pyproject.toml."""
    (pattern,) = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "pipeline.config"
    ]
    package = PROJECT / "pipeline" / "config"
    packed = {path.relative_to(package / "presets").with_suffix("").as_posix() for path in package.glob(pattern)}
    assert packed == set(preset_names())


def test_a_preset_is_also_a_file_and_extends_another(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: imagenet-f16d32\ntokenizer: {steps: 7}\n")
    own = load_config(str(path))
    assert (own.tokenizer.latent_dim, own.tokenizer.patch_size, own.tokenizer.steps) == (32, 16, 7)


def test_order_of_the_layers(tmp_path, monkeypatch):
    """Preset, then site file, then --set, then --root."""
    site = tmp_path / "site.yaml"
    site.write_text("root: /from/site\ntokenizer: {steps: 11}\ncluster: {workers: 2}\n")
    monkeypatch.setenv("DVAE_SITE", str(site))
    config = load_config("quickstart", ["tokenizer.steps=12"], root="/from/option")
    assert (config.cluster.workers, config.tokenizer.steps, config.root) == (2, 12, "/from/option")
    assert load_config("quickstart").root == "/from/site"


REFUSED = [
    ("tokenizer.scale_weight=3", "scale_weight is of regularizer scale, and regularizer is spectral"),
    ("tokenizer={regularizer: none, level_probabilities: [1, 0, 0, 0]}", "level_probabilities is of regularizer spec"),
    ("sit.depht=3", "sit.depht: unknown key (quickstart). Did you mean 'depth'?"),
    ("tokenizer.steps=many", "tokenizer.steps: "),
    ("tokenizer.steps=-1", "tokenizer.steps: "),
    ("tokenizer.steps=1.5", "tokenizer.steps: "),
    ("tokenizer.latent_dim=0", "tokenizer.latent_dim: "),
    ("tokenizer.patch_size=7", "tokenizer.patch_size 7 does not divide data.image_size 32"),
    ("tokenizer.patch_size=32", "no frequencies"),
    ("tokenizer={regularizer: matching, patch_size: 8}", "regularizer matching: a 4 x 4 latent is not made of whole"),
    ("tokenizer.width=66", "tokenizer: width 66"),
    ("tokenizer.steps", "--set tokenizer.steps: not of the form a.b=c"),
    ("sit.level=3", "level 3 has none"),
    ("sit.level=4", "sit.level: "),
    ("sit.alignment=repa", "sit.alignment: "),
    ("tokenizer.discriminator_layers=355154457754", "tokenizer.discriminator_layers: "),
    ("sit.size=XL", "sit: width, depth and heads must be set for size custom"),
    ("data.format=zip", "data.format: "),
    ("data=nothing", "data: "),
    ("cluster.workers=5", "is not divisible by 5 workers"),
    ("sit.student_block=5", "sit: student_block 5 exceeds the number of blocks, 4"),
    ("sit.teacher_block=9", "sit: teacher_block 9 exceeds the number of blocks, 4"),
    ("sample.guidance=0.5", "sample.guidance: "),
    (
        "sample.guidance_interval=[-0.25,1]",
        "interval.0: input should be greater than or equal to 0 (given: -0.25)",
    ),
    ("sample.guidance_interval=[0,1.5]", "guidance_interval.1: input should be less than or equal to 1 (given: 1.5)"),
    ("sample.guidance_interval=[0.7,0.2]", "sample: guidance_interval must not begin after its end: 0.7, 0.2"),
    ("register.name=a/b", "register.name: "),
    ("evaluate.network=inception", "network_size must be 299"),
]


def test_a_date_that_there_is_not_is_text():
    """YAML would read 2024-02-28 as a date, and 2024-02-30 as an error."""
    assert load_config("quickstart", ["tracking.experiment=2024-02-30"]).tracking.experiment == "2024-02-30"


def test_a_preset_may_merge_a_part_of_itself(tmp_path):
    (tmp_path / "p.yaml").write_text("extends: quickstart\nsit: &x {steps: 7}\ntokenizer: {<<: *x, batch_size: 8}\n")
    config = load_config(str(tmp_path / "p.yaml"))
    assert (config.sit.steps, config.tokenizer.steps, config.tokenizer.batch_size) == (7, 7, 8)


@pytest.mark.parametrize(("override", "said"), REFUSED)
def test_what_is_refused_is_said_in_one_line(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


LPIPS = "tokenizer.perceptual=lpips"


def test_a_latent_without_a_half_cannot_be_scaled():
    """With LPIPS, half of 24 pixels is too small too."""
    scale = "tokenizer.regularizer=scale"
    for sets, said in ((["data.image_size=36"], "the 9 x 9 latent"), (["data.image_size=24", LPIPS], "4 at least for")):
        with pytest.raises(ConfigError, match=f"regularizer scale needs a half or a quarter of .*{said}") as caught:
            load_config("quickstart", [scale, *sets])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("patch", "lpips", "smallest"), [(4, False, (3, 1)), (4, True, (4, 4)), (2, True, (8, 8)), (8, True, (2, 2))]
)
def test_images_are_not_made_smaller_than_what_the_losses_take(patch, lpips, smallest):
    """12 pixels for D, 16 for LPIPS; in cells, of all losses and of LPIPS alone."""
    config = load_config("quickstart", [f"tokenizer.patch_size={patch}", *([LPIPS] if lpips else [])])
    assert (config.smallest_side, config.smallest_perceptual_side) == smallest


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "seed: {a: 1}", "\x00"])
def test_a_file_that_is_no_preset(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)


def test_presets_that_do_not_exist_or_go_round(tmp_path):
    with pytest.raises(ConfigError, match="unknown preset 'nothing'"):
        load_config("nothing")
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"extends: {two}\n")
    two.write_text(f"extends: {one}\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(str(one))


value = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=3)
)


@settings(max_examples=300)
@given(st.sampled_from(LEAVES), value)
def test_any_value_is_taken_or_refused_in_one_line(name, value):
    try:
        load_config("quickstart", [f"{name}={json.dumps(value)}"])
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(st.from_regex(r"[a-z_]{1,12}(\.[a-z_]{1,12}){0,2}", fullmatch=True))
def test_unknown_keys_are_refused(name):
    known = {part for leaf in LEAVES for part in (leaf, *(leaf.rsplit(".", n)[0] for n in (1, 2)))}
    if name in known or name.startswith(("cluster.pools.", "cluster.gpu_shares.")):
        return
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [f"{name}=1"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("train-sit=0.5", "train-sit: each worker of a training has a GPU, or a MIG slice, to itself"),
        (
            "register=0.5",
            "register: stages whose tasks can share a GPU are evaluate-tokenizer, analyze, encode, sample",
        ),
        ("encode=1.5", "encode: a share of a GPU is from 0.01 to 1, not 1.5"),
        ("encode=0", "encode: a share of a GPU is from 0.01 to 1, not 0"),
    ],
)
def test_shares_of_a_gpu_that_make_no_sense(given, words):
    with pytest.raises(ConfigError, match=f"^cluster.gpu_shares: {words}"):
        load_config("quickstart", [f"cluster.gpu_shares.{given}"])


def test_the_shape_of_sit():
    own = load_config("imagenet-f16d16")
    width, depth, _ = own.sit.shape
    size = sit_parameters(grid=own.grid, latent_dim=16, classes=1000, width=width, depth=depth)
    assert size == pytest.approx(674.9e6, rel=1e-3)
    assert own.sit.aligned_blocks == (8, 20)


@pytest.mark.parametrize(
    ("sets", "blocks"),
    [("size=S", (4, 8)), ("size=B", (4, 8)), ("size=L", (7, 17)), ("size=B student_block=9", (9, 9)),
     ("size=B teacher_block=11", (4, 11))],
)  # fmt: skip
def test_aligned_blocks_are_those_of_sra(sets: str, blocks: tuple[int, int]) -> None:
    config = load_config("imagenet-f16d16", [f"sit.{one}" for one in sets.split()])
    assert config.sit.aligned_blocks == blocks


def test_an_alignment_takes_its_own_settings_where_nothing_is_set() -> None:
    def of(*sets: str) -> tuple[Any, ...]:
        return tuple(load_config("imagenet-f16d16", [f"sit.{one}" for one in sets]).sit.alignment_settings)

    assert of("alignment=fda") == (0.25, "linear", "cosine")
    assert of("alignment=sra") == (0.2, "constant", "smooth_l1")
    assert of("alignment=sra", "alignment_weight=0.5", "alignment_loss=cosine") == (0.5, "constant", "cosine")


def test_large_grids_are_refused_at_once() -> None:
    """Above 1 GB of matrices of S_l, in one line. A config's check must not grow with the square of the grid."""
    begin = time.process_time()
    for size, patch, told in ((8192, 1, "8192 x 8192 latent are 72057594.0 GB"), (1024, 8, "128 x 128 latent are 4.3")):
        sets = [f"data.image_size={size}", f"tokenizer.patch_size={patch}", "tokenizer.mask=remove"]
        with pytest.raises(ConfigError, match=f"tokenizer.patch_size: .*{told}.*more than 1 GB; raise it") as caught:
            load_config("imagenet-f16d16", sets)
        assert "\n" not in str(caught.value)
    assert time.process_time() - begin < 2
    assert load_config("imagenet-f16d16", ["data.image_size=1024"]).grid == 64


@pytest.mark.parametrize(
    ("field", "uri"),
    [
        ("root", "s3://bucket/exp#1"),
        ("root", "s3://bucket/exp?x"),
        ("root", "S3://bucket/exp#1"),
        ("data.uri", "s3://bucket/photos#1"),
        ("data.validation_uri", "s3://bucket/photos/{a#,b}.tar"),
    ],
)
def test_a_prefix_that_other_programs_read_as_another_is_refused(field: str, uri: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{field}: '{uri}' contains ")):
        load_config("quickstart", [f"{field}={uri}"])
    with pytest.raises(ConfigError, match="most programs"):
        load_config("quickstart", [], root="s3://bucket/exp#1")
    for fine in ("s3://bucket/a b+c%20", "/tmp/exp#1", "file:///tmp/exp%231"):
        assert load_config("quickstart", [f"root={fine}"]).root == fine
    assert load_config("quickstart", ["data.uri=s3://bucket/photos?1"]).data.uri == "s3://bucket/photos?1"


# --- kinds of tokenizers ---

SD_VAE = ["tokenizer.kind=sd-vae", "tokenizer.latent_dim=4"]
BARE = [f"tokenizer.{name}=null" for name in ("width", "depth", "heads", "hidden")]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (SD_VAE, "tokenizer: width and depth and heads and hidden: of kind vit alone, and kind is sd-vae"),
        (["tokenizer.layers_per_block=1"], "tokenizer: layers_per_block: of kind sd-vae alone, and kind is vit"),
        ([*SD_VAE, *BARE], "tokenizer: patch_size 4 is not the factor of 4 block_out_channels, 8"),
        (
            [*SD_VAE, *BARE, "tokenizer.block_out_channels=[32,48,64]"],
            "tokenizer: norm_num_groups 32 does not divide 48 of block_out_channels",
        ),
        (["tokenizer.kind=dc-ae", *BARE], "tokenizer: kind dc-ae is not trained here; set imported"),
        (["tokenizer.kind=taesd"], "tokenizer.kind: "),
        ([f"tokenizer.imported={'a' * 64}"], "width and depth and heads and hidden: known from what was imported"),
        (["tokenizer.imported=0123", *BARE], "tokenizer.imported: "),
        (
            [f"tokenizer.imported={'a' * 64}", *BARE, "tokenizer.regularizer=equivariance"],
            "tokenizer.regularizer has no effect: tokenizer.imported is used as it is",
        ),
        (
            [f"sit.imported={'a' * 64}", "sit.steps=3"],
            "sit.steps has no effect: sit.imported is used as it is, and not trained",
        ),
        (["sit.imported=0123"], "sit.imported: "),
        (["sample.last_step=0.1"], "sample.last_step has no effect with sample.method heun. Leave it out, or set"),
        (["sample.method=dopri5", "sample.steps=9"], "sample.steps has no effect with sample.method dopri5"),
        (["sample.method=sde", "sample.tolerances=[1e-3,1e-3]"], "sample.tolerances has no effect with"),
        (
            ["evaluate.classifier=efficientnet_lite0", "data.classes=10"],
            "reads the 1,000 classes of ImageNet",
        ),
        (["evaluate.classifier=resnet50"], "classifier: resnet50 needs classifier_weights, a file of safetensors"),
        (["evaluate.classifier_weights=vgg16"], "classifier_weights are of no network; set classifier to its name"),
        (
            ["evaluate.network=dinov2_vitb14", "evaluate.network_size=96"],
            "evaluate.network_size 96 is no multiple of 14, the pixels of a patch of dinov2_vitb14; 224 is common",
        ),
        (["sit.patch_size=3"], "sit.patch_size 3 does not divide the 8 x 8 latent of the tokenizer"),
        (
            ["tokenizer.kind=dc-ae", f"tokenizer.imported={'a' * 64}", "tokenizer.patch_size=64", *BARE],
            "tokenizer.patch_size 64 does not divide data.image_size 32",
        ),
    ],
)
def test_a_kind_is_refused_what_is_not_its_own(sets, said):
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", sets)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_patch_of_sit_reaches_its_network():
    assert load_config("quickstart", ["sit.patch_size=2", "data.classes=10"]).sit_network["patch_size"] == 2
