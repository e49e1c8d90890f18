"""Of every config field: can it move an example, a weight, a latent, a picture or a metric? Only then it counts.

Who adds a field answers here, with a reason; `graph.py` has to agree.
"""

from typing import Any

import pytest

from pipeline.config import Config, load_config
from pipeline.workflow.fingerprints import counted_config, stage_fingerprints, uncounted_config
from pipeline.workflow.graph import ALL_STAGES, NAMES, find_stage
from tests.pipeline.config.test_config import LEAVES
from tests.pipeline.workflow.test_fingerprints import changed

# The first stage whose result the field moves, and how; None: no result.
Answer = tuple[str | None, str]


def network(stage: str) -> Answer:
    return stage, "the shape of the network: its weights"


def training(stage: str) -> Answer:
    return stage, "every step of the training: its weights"


def place(what: str) -> Answer:
    return None, f"where {what}"


def speed(what: str) -> Answer:
    return None, f"how fast, at most in the last bits of float sums: {what}"


ANSWERS: dict[str, Answer] = {
    "root": place("artifacts lie"),
    "weights": place("pretrained weights lie; of each its content counts"),
    "seed": ("prepare", "which images are held out; then every draw of trainings and samples without a seed of theirs"),
    "data.format": ("prepare", "how images and labels are found in files"),
    "data.uri": place("the source lies; what it holds is data.revision"),
    "data.revision": ("prepare", "the content of the source"),
    "data.validation_uri": place("its validation images lie; which files are of which split is in data.revision"),
    "data.validation_share": ("prepare", "which images are held out"),
    "data.image_size": ("train-tokenizer", "the pixels of an example"),
    "data.classes": ("prepare", "which labels are refused; the place of the null label in SiT's table"),
    "data.center_crop": ("train-tokenizer", "the pixels of an example"),
    "data.horizontal_flip": ("train-tokenizer", "the pixels of an example"),
    "data.shuffle": ("train-tokenizer", "the order of examples"),
    "data.window_rows": ("train-tokenizer", "the order of examples, if shuffled by windows"),
    "data.shard_bytes": ("prepare", "which examples share a file, and a window"),
    "data.image_column": ("prepare", "which column of a Parquet file is read"),
    "data.label_column": ("prepare", "which column of a Parquet file is read"),
    "data.shard_rows": ("prepare", "which examples share a file, and a window"),
    "data.name": ("classifier", "the keys of what it measures"),
    "data.max_pixels": ("prepare", "which images are quarantined"),
    "data.quarantine_budget": (None, "a tolerance: refuses a result, changes none"),
    "tokenizer.steps": training("train-tokenizer"),
    "tokenizer.batch_size": training("train-tokenizer"),
    "tokenizer.learning_rate": training("train-tokenizer"),
    "tokenizer.betas": training("train-tokenizer"),
    "tokenizer.weight_decay": training("train-tokenizer"),
    "tokenizer.warmup": training("train-tokenizer"),
    "tokenizer.decay": training("train-tokenizer"),
    "tokenizer.clip": training("train-tokenizer"),
    "tokenizer.ema_decay": training("train-tokenizer"),
    "tokenizer.start_from": training("train-tokenizer"),
    "tokenizer.seed": training("train-tokenizer"),
    "tokenizer.precision": ("train-tokenizer", "the rounding of every product, far above the last bits"),
    "tokenizer.checkpoint_every": (None, "a resumed training is an undisturbed one"),
    "tokenizer.log_every": (None, "what is told: the lines of the history, no weight"),
    "tokenizer.kind": network("train-tokenizer"),
    "tokenizer.imported": ("train-tokenizer", "which weights there are, without a training"),
    "tokenizer.patch_size": network("train-tokenizer"),
    "tokenizer.latent_dim": network("train-tokenizer"),
    "tokenizer.width": network("train-tokenizer"),
    "tokenizer.depth": network("train-tokenizer"),
    "tokenizer.heads": network("train-tokenizer"),
    "tokenizer.hidden": network("train-tokenizer"),
    "tokenizer.block_out_channels": network("train-tokenizer"),
    "tokenizer.layers_per_block": network("train-tokenizer"),
    "tokenizer.norm_num_groups": network("train-tokenizer"),
    "tokenizer.regularizer": training("train-tokenizer"),
    "tokenizer.mask": training("train-tokenizer"),
    "tokenizer.keep": training("train-tokenizer"),
    "tokenizer.level_probabilities": training("train-tokenizer"),
    "tokenizer.level_per_sample": training("train-tokenizer"),
    "tokenizer.mse_weight": training("train-tokenizer"),
    "tokenizer.l1_weight": training("train-tokenizer"),
    "tokenizer.kl_weight": training("train-tokenizer"),
    "tokenizer.perceptual_weight": training("train-tokenizer"),
    "tokenizer.perceptual": training("train-tokenizer"),
    "tokenizer.lpips": training("train-tokenizer"),
    "tokenizer.convnext": training("train-tokenizer"),
    "tokenizer.efficientnet": training("train-tokenizer"),
    "tokenizer.adversarial_weight": training("train-tokenizer"),
    "tokenizer.scale_weight": training("train-tokenizer"),
    "tokenizer.spectrum_weight": training("train-tokenizer"),
    "tokenizer.spectrum_delta": training("train-tokenizer"),
    "tokenizer.discriminator_width": training("train-tokenizer"),
    "tokenizer.discriminator_layers": training("train-tokenizer"),
    "tokenizer.discriminator_learning_rate": training("train-tokenizer"),
    "tokenizer.discriminator_start": training("train-tokenizer"),
    "tokenizer.adversarial_start": training("train-tokenizer"),
    "evaluate.images": ("evaluate-tokenizer", "which images the metrics are of"),
    "evaluate.batch_size": speed("images of one forward pass"),
    "evaluate.network": ("evaluate-tokenizer", "what the distances measure"),
    "evaluate.network_weights": ("evaluate-tokenizer", "what the distances measure"),
    "evaluate.lpips": ("evaluate-tokenizer", "which metrics there are"),
    "evaluate.network_size": ("evaluate-tokenizer", "what the distances measure"),
    "evaluate.also": ("evaluate-tokenizer", "which metrics there are"),
    "evaluate.reference_split": ("reference", "which images samples are compared with"),
    "evaluate.reference_images": ("reference", "which images samples are compared with"),
    "evaluate.precision": ("evaluate-tokenizer", "the rounding of every product, far above the last bits"),
    "evaluate.classifier": ("evaluate-samples", "which metrics there are"),
    "evaluate.classifier_weights": ("evaluate-samples", "what its accuracy measures"),
    "evaluate.class_accuracy": ("evaluate-samples", "which metrics there are"),
    "encode.batch_size": speed("images of one forward pass; see test_latents_do_not_depend_on_the_batch"),
    "encode.shard_rows": ("encode", "which latents share a file, and a window"),
    "encode.precision": ("encode", "the rounding of every product, far above the last bits"),
    "encode.canary_margin": (None, "a tolerance: refuses a result, changes none"),
    "sit.imported": ("train-sit", "which weights there are, without a training"),
    "sit.steps": training("train-sit"),
    "sit.batch_size": training("train-sit"),
    "sit.learning_rate": training("train-sit"),
    "sit.betas": training("train-sit"),
    "sit.weight_decay": training("train-sit"),
    "sit.warmup": training("train-sit"),
    "sit.clip": training("train-sit"),
    "sit.ema_decay": training("train-sit"),
    "sit.milestones": ("train-sit", "which weights along the training there are"),
    "sit.keep_state": (None, "what is kept for more steps: no weight of this artifact"),
    "sit.start_from": training("train-sit"),
    "sit.ema_decays": ("train-sit", "which averages of the weights there are"),
    "sit.seed": training("train-sit"),
    "sit.precision": ("train-sit", "the rounding of every product, far above the last bits"),
    "sit.checkpoint_every": (None, "a resumed training is an undisturbed one"),
    "sit.log_every": (None, "what is told: the lines of the history, no weight"),
    "sit.size": network("train-sit"),
    "sit.width": network("train-sit"),
    "sit.depth": network("train-sit"),
    "sit.heads": network("train-sit"),
    "sit.patch_size": network("train-sit"),
    "sit.qk_norm": network("train-sit"),
    "sit.time_scale": network("train-sit"),
    "sit.level": ("floor", "the level of reconstructions that samples are compared with; every step of the training"),
    "sit.path": training("train-sit"),
    "sit.times": training("train-sit"),
    "sit.prediction": training("train-sit"),
    "sit.alignment": training("train-sit"),
    "sit.alignment_levels": training("train-sit"),
    "sit.alignment_weight": training("train-sit"),
    "sit.alignment_schedule": training("train-sit"),
    "sit.alignment_loss": training("train-sit"),
    "sit.alignment_head": training("train-sit"),
    "sit.student_block": training("train-sit"),
    "sit.teacher_block": training("train-sit"),
    "sit.decay": training("train-sit"),
    "sit.label_dropout": training("train-sit"),
    "sample.count": ("sample", "which pictures there are"),
    "sample.batch_size": ("sample", "which pictures share a file"),
    "sample.method": ("sample", "the path of a picture from noise"),
    "sample.steps": ("sample", "the path of a picture from noise"),
    "sample.last_step": ("sample", "the path of a picture from noise"),
    "sample.tolerances": ("sample", "the path of a picture from noise"),
    "sample.guidance": ("sample", "the path of a picture from noise"),
    "sample.guidance_interval": ("sample", "the path of a picture from noise"),
    "sample.ema_decay": ("sample", "the weights that draw a picture"),
    "sample.seed": ("sample", "the noise of a picture"),
    "sample.precision": ("sample", "the rounding of every product, far above the last bits"),
    "convergence.images": ("convergence", "which pictures there are"),
    "register.name": ("register", "which model gets the version"),
    "register.gate.metric": ("register", "what the gate decides"),
    "register.gate.direction": ("register", "what the gate decides"),
    "register.gate.minimum": ("register", "what the gate decides"),
    "register.gate.margin": ("register", "what the gate decides"),
    "cluster.workers": speed("the ranks of a training"),
    "cluster.min_workers": speed("the ranks of a training"),
    "cluster.device": speed("the kind of device"),
    "cluster.cpus_per_worker": speed("threads"),
    "cluster.pools": place("stages run"),
    "cluster.gpu_shares": speed("tasks on a GPU"),
    "cluster.encode_actors": speed("actors"),
    "cluster.loader_threads": speed("threads"),
    "cluster.mirror": place("a node keeps its copy"),
    "cluster.accumulate": speed("the parts of a batch"),
    "cluster.checkpoint_activations": speed("what a backward pass keeps"),
    "cluster.max_failures": (None, "a tolerance: a resumed training is an undisturbed one"),
    "cluster.keep_checkpoints": (None, "a resumed training is an undisturbed one"),
    "cluster.compile": speed("other kernels"),
    "cluster.deterministic": speed("other kernels"),
    "cluster.price_per_hour": (None, "what is told: the estimates of suite plan"),
    "cluster.device_peak_tflops": (None, "what is told: the estimates of plan"),
    "cluster.assumed_mfu": (None, "what is told: the estimates of plan"),
    "tracking.uri": place("metrics are sent"),
    "tracking.experiment": place("metrics are sent"),
}


KNOWN = ["data.revision=abc", "evaluate.also=[self]"]  # with every stage there is


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("quickstart", KNOWN)


def test_every_field_has_its_answer() -> None:
    assert sorted(set(LEAVES) ^ set(ANSWERS)) == [], "say whether the field can move a result, and how"


def moved(config: Config, other: Any) -> list[str]:
    before, after = stage_fingerprints(config), stage_fingerprints(other)
    return [stage for stage in before if before[stage] != after[stage]]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("name", LEAVES)
def test_a_field_moves_the_fingerprints_of_what_it_can_move(config: Config, name: str) -> None:
    first, _ = ANSWERS[name]
    stages = moved(config, changed(config, name))
    assert (stages[0] if stages else None) == first
    of_a_run = [stage for stage in stages if stage in NAMES]
    assert not of_a_run or of_a_run[-1] == "register", "what comes after is made from it"


def test_a_seed_written_down_counts_as_the_same_seed_by_default(config: Config) -> None:
    for sets in (["tokenizer.seed=0", "sit.seed=0", "sample.seed=0"], ["sit.seed=0"]):
        assert moved(config, load_config("quickstart", [*KNOWN, *sets])) == []
    seed = load_config("quickstart", [*KNOWN, "seed=1"])
    assert moved(seed, load_config("quickstart", [*KNOWN, "seed=1", "sample.seed=1"])) == []


def test_a_seed_of_the_generator_trains_no_tokenizer(config: Config) -> None:
    other = load_config("quickstart", [*KNOWN, "sit.seed=1"])
    after = ["train-sit", "sample", "evaluate-samples", "register", "convergence"]
    assert moved(config, other) == after
    assert counted_config(find_stage("train-sit"), other)["sit.seed"] == 1
    assert "tokenizer.seed" not in counted_config(find_stage("train-tokenizer"), other)
    assert moved(config, load_config("quickstart", [*KNOWN, "sample.seed=1"])) == [
        name for name in after if name != "train-sit"
    ]


def test_what_is_read_though_it_does_not_count_is_kept(config: Config) -> None:
    """So that a repair does as was done: a history with other lines is another file."""
    kept = {stage.name: set(uncounted_config(stage, config)) for stage in ALL_STAGES}
    assert kept == {
        "prepare": {"data.uri", "data.validation_uri", "data.quarantine_budget"},
        "train-tokenizer": {"tokenizer.checkpoint_every", "tokenizer.log_every"},
        "evaluate-tokenizer": {"evaluate.batch_size"},
        "analyze": set(),
        "encode": {"encode.batch_size", "encode.canary_margin", "data.quarantine_budget"},
        "train-sit": {"sit.checkpoint_every", "sit.log_every", "sit.keep_state"},
        "sample": set(),
        "classifier": set(),
        "reference": {"evaluate.batch_size"},
        "floor": {"evaluate.batch_size"},
        "evaluate-samples": {"evaluate.batch_size"},
        "register": set(),
        "convergence": {"evaluate.batch_size"},
    }
    assert [name for names in kept.values() for name in names if ANSWERS[name][0]] == []


def test_of_a_weight_file_the_content_counts_and_the_place_is_kept() -> None:
    def with_weights(uri: str, digit: str) -> Config:
        file = f"{{uri: {uri}, sha256: '{digit * 64}'}}"
        return load_config("quickstart", ["data.revision=abc", "tokenizer.perceptual=lpips", f"tokenizer.lpips={file}"])

    here, there, others = with_weights("/a", "0"), with_weights("s3://b/c", "0"), with_weights("/a", "1")
    assert moved(here, there) == []
    assert moved(here, others)[0] == "train-tokenizer"
    stage = find_stage("train-tokenizer")
    assert counted_config(stage, there)["tokenizer.lpips"] == {"sha256": "0" * 64}
    kept = uncounted_config(stage, there)["tokenizer.lpips"]
    assert kept == {"name": None, "uri": "s3://b/c", "sha256": "0" * 64}
