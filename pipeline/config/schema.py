"""The schema of the config: a tree of typed, described fields, with checks of their consistency.

The tokenizer's section is in `tokenizer.py`, the generator's are in `generator.py`. Loading (presets, files, overrides)
is in `loading.py`; the stages that depend on each field are listed in `workflow/graph.py`. A field's description gives
meaning and unit. Unknown keys are errors. No torch, ray or mlflow.
"""

import warnings
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from models.choices import (
    DINOV2_PATCH,
    FEATURE_WEIGHTS,
    IMAGENET_CLASSIFIERS,
    EvaluationPrecision,
    FeatureNetwork,
    FurtherNetwork,
    Precision,
)
from models.sizes import smallest_discriminator_image
from pipeline.config.checks import (
    check_factor,
    check_gate,
    check_gpu_shares,
    check_imagenet_classes,
    check_lpips,
    check_masks,
    check_own_network,
    check_patch,
    check_regularizer,
    check_tracking_uri,
    check_workers,
    perceptual_cells,
)
from pipeline.config.fields import (
    ModelName,
    RootUri,
    Section,
    Seed,
    Share,
    Shuffle,
    SourceUri,
    Split,
    Weights,
    added_field,
)
from pipeline.config.generator import ConvergenceConfig, SampleConfig, SitConfig, check_average
from pipeline.config.tokenizer import TokenizerConfig
from pipeline.errors import ConfigError

# The section `register` shadows a method of ABCMeta that is not used here.
warnings.filterwarnings("ignore", message='Field name "register"')


class DataConfig(Section):
    format: Literal["digits", "folder", "parquet", "webdataset"] = Field(
        "folder",
        description="Format of the source: scikit-learn's built-in digits, one folder per class (as ImageNet), "
        "Parquet files with image and label columns (as Hugging Face), or WebDataset tars.",
    )
    name: str | None = Field(
        None,
        pattern="^[a-z0-9][a-z0-9.-]*$",
        max_length=40,
        description="Name of the data, in the keys of what is measured by a classifier of them: self-NAME. None: "
        "digits for the digits; else the network self is refused.",
    )
    uri: SourceUri | None = Field(
        None,
        description="file:// or s3:// URI of the training images, or a glob (*, ?, [...], **, {a,b}). Folders or files "
        "named train, val or test are recognised as splits. None: not set yet.",
    )
    revision: str | None = Field(
        None,
        description="Digest of what the source holds. None: from `data index`; else the source must match.",
    )
    validation_uri: SourceUri | None = Field(
        None,
        description="URI or glob of the validation images. None: the validation or test split of `uri`, else a share.",
    )
    validation_share: Share = Field(0.1, description="Share of the images held out if there is no validation split.")
    image_column: str | None = Field(
        None, description="Column of the encoded images in Parquet files. None: found by its name, such as image."
    )
    label_column: str | None = Field(
        None, description="Column of the labels in Parquet files. None: found by its name, such as label."
    )
    image_size: int = Field(256, ge=6, le=8192, description="Side of the models' images, in pixels.")
    classes: int | None = Field(
        None,
        ge=1,
        description="Number of classes; labels are 0 to classes - 1. None: the number of class folders; 10 for digits.",
    )
    center_crop: bool = Field(True, description="Centre crop as in ADM. False: both sides are resized to image_size.")
    horizontal_flip: bool = Field(True, description="Flip half of the tokenizer's training images horizontally.")
    shuffle: Shuffle = Field(
        "full", description="full: permute all rows per epoch. window: for data larger than a disk."
    )
    window_rows: int = Field(65536, ge=1, description="Rows per window for shuffle: window.")
    shard_rows: int = Field(2048, ge=1, description="Images per shard of the prepared data, at most.")
    shard_bytes: int = Field(
        256 << 20, ge=1 << 20, description="Bytes of images per shard, at most; a larger image has a shard of its own."
    )
    max_pixels: int = Field(178_956_970, ge=1, description="Images with more pixels are quarantined without decoding.")
    quarantine_budget: Share = Field(0.01, description="Share of unreadable images above which the stage fails.")

    @property
    def known_name(self) -> str | None:
        """The name, as set or as the format has it."""
        return self.name or ("digits" if self.format == "digits" else None)

    @property
    def class_count(self) -> int:
        """The number of classes. ConfigError if neither the config nor the source's index has it."""
        if self.classes is None:
            raise ConfigError(f"data.classes is not set for a source of format {self.format}", "Set data.classes.")
        return self.classes

    @model_validator(mode="after")
    def _fits(self) -> "DataConfig":
        if self.validation_uri is None and not 0.0 < self.validation_share < 1.0:
            raise ValueError(
                f"validation_share {self.validation_share:g} leaves a split empty, and validation_uri is not set"
            )
        return self


class EvaluateConfig(Section):
    images: int = Field(50_000, ge=1, description="Maximum number of validation images to reconstruct.")
    batch_size: int = Field(64, ge=1, description="Images per forward pass.")
    network: FeatureNetwork = Field(
        "inception",
        description="Feature network of the distances, whose keys contain its name. self: a small classifier, trained "
        "on the training split, whose name in keys is self- and data.name.",
    )
    also: tuple[FurtherNetwork, ...] = Field(
        (), description="Further networks that the same images are measured by; an efficientnet_lite0 of the package."
    )
    network_weights: Weights | None = Field(
        None,
        description="Its weights. None: inception or dinov2-vitb14 of the catalogue, and for efficientnet_lite0 those "
        "in its Python package.",
    )
    lpips: Weights | None = Field(
        None, description="VGG-16's weights, such as vgg16, to measure LPIPS of reconstructions. None: not measured."
    )
    network_size: int = Field(
        299, ge=32, description="Side to which images are resized for ImageNet's networks, in pixels."
    )
    reference_split: Split = Field(
        "train", description="The split that samples are compared with: train, the field's habit, or validation."
    )
    reference_images: int | None = Field(
        None, ge=2, description="How many of its images. None: all; fewer make a Frechet distance larger."
    )
    precision: EvaluationPrecision = Field(
        "fp32",
        description="fp32, tf32: TF32 products on GPUs, or bf16: also autocast of the tokenizer, in analyze too.",
    )
    classifier: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")] | None = added_field(
        "0.1.0",
        None,
        "A classifier of ImageNet's 1,000 classes, and how often it reads a sample as its class: efficientnet_lite0, "
        "or any of timm's with its weights. None: not measured.",
    )
    classifier_weights: Weights | None = added_field(
        "0.1.0",
        None,
        "Its weights, safetensors under timm's names. None: convnext_small's of the catalogue, and for "
        "efficientnet_lite0 those in its Python package.",
    )
    class_accuracy: bool = Field(
        False, description="Classify samples with an SVC trained on real images (for small sets such as digits)."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_weights(cls, given: Any) -> Any:
        """The catalogue's, where it has some and none are given."""
        if not isinstance(given, dict):
            return given
        named = {}
        for field, network, catalogue in (
            ("network_weights", given.get("network", "inception"), FEATURE_WEIGHTS),
            ("classifier_weights", given.get("classifier"), IMAGENET_CLASSIFIERS),
        ):
            if (name := catalogue.get(str(network))) and not given.get(field):
                named[field] = name
        return {**given, **named}

    @property
    def networks(self) -> tuple[FeatureNetwork, ...]:
        """All of them, that of the gate first."""
        return (self.network, *self.also)

    @model_validator(mode="after")
    def _fits(self) -> "EvaluateConfig":
        if len(set(self.networks)) < len(self.networks):
            raise ValueError(f"also: {', '.join(self.networks)} names a network twice")
        if self.network == "self" and self.network_weights is not None:
            raise ValueError("network_weights: the network self is trained here; leave it out, or set null")
        if self.classifier_weights is not None and self.classifier is None:
            raise ValueError("classifier_weights are of no network; set classifier to its name in timm")
        if self.classifier not in (None, "efficientnet_lite0") and self.classifier_weights is None:
            raise ValueError(f"classifier: {self.classifier} needs classifier_weights, a file of safetensors")
        return self


class EncodeConfig(Section):
    batch_size: int | None = Field(
        None, ge=1, description="Images per forward pass, always as many; unless set 128 on GPUs and 16 on CPUs."
    )
    shard_rows: int = Field(2048, ge=1, le=4096, description="Latents per shard.")
    precision: Precision = Field("bf16", description="Autocast of the encoder; moments are stored in fp16.")
    canary_margin: float = Field(
        1.0, ge=0, description="PSNR in dB that decoded latents may lose against the tokenizer's own in fp32."
    )


class GateConfig(Section):
    """The conditions for a candidate to become champion."""

    metric: str = Field(
        "samples/frechet_distance/inception",
        pattern="^(reconstruction|samples|latent)/.",
        description="The metric to compare.",
    )
    direction: Literal["lower", "higher"] = Field("lower", description="Whether lower or higher is better.")
    minimum: float | None = Field(None, description="Worst value for any champion, including the first.")
    margin: Annotated[float, Field(ge=0)] | Literal["interval"] = Field(
        0.0,
        description="Minimum improvement of a candidate over the champion. interval: more than the 95% interval of the "
        "difference, from those of both.",
    )


class RegisterConfig(Section):
    name: ModelName = Field("denoising-vae", description="Name in MLflow's model registry.")
    gate: GateConfig = Field(GateConfig(), description="Conditions for a candidate to become champion.")


class ClusterConfig(Section):
    """Where and how fast stages run. No field here changes a result or a fingerprint."""

    workers: int = Field(1, ge=1, description="Training workers (ranks).")
    min_workers: int | None = Field(None, ge=1, description="Continue with as few workers as this if nodes are lost.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where Ray has GPUs.")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="CPUs and torch threads per worker. None: an equal share."
    )
    pools: dict[str, dict[str, float]] = Field(
        {}, description="Stage name -> the Ray resources of its pool, e.g. {train-sit: {gpu-sit: 0.001}}."
    )
    gpu_shares: Annotated[dict[str, float], AfterValidator(check_gpu_shares)] = Field(
        {},
        description="Stage name -> share of a GPU, and of its memory, that each of its tasks takes, e.g. "
        "{evaluate-samples: 0.5}. A whole one where not named; training workers always have a whole one.",
    )
    encode_actors: int | None = Field(
        None, ge=1, description="Actors that encode, a device each. None: as many as GPUs, or as cores without GPUs."
    )
    loader_threads: int = Field(4, ge=1, description="Threads per worker that decode images.")
    mirror: str | None = Field(
        None,
        description="Local folder of the mirror, and of a checkpoint while it is restored from S3. None: in the user's "
        "cache folder.",
    )
    max_failures: int = Field(20, ge=0, description="Worker failures that a stage tolerates.")
    keep_checkpoints: int = Field(2, ge=1, description="Checkpoints to keep during training.")
    compile: Literal["auto", True, False] = Field(
        "auto", description="torch.compile each transformer block in training. auto: on GPUs only."
    )
    accumulate: int = Field(
        1, ge=1, description="Parts into which a worker's batch is cut, one after the other, to need less memory."
    )
    checkpoint_activations: bool = Field(
        False,
        description="Compute the blocks' activations anew in the backward pass: less memory, one more forward pass.",
    )
    deterministic: bool = Field(True, description="Deterministic kernels on GPUs (CPUs always are).")
    price_per_hour: float | None = Field(
        None, ge=0, description="Price of a device for an hour, in any currency, for suite plan."
    )
    device_peak_tflops: float = Field(989.0, gt=0, description="Peak of a device in TFLOP/s, for plan.")
    assumed_mfu: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.4, description="Share of the peak, for plan.")


class TrackingConfig(Section):
    uri: str | None = Field(
        None,
        description="MLflow tracking URI: http(s)://, sqlite:///. None: MLFLOW_TRACKING_URI, else SQLite at the root.",
    )
    experiment: str = Field("denoising-vae", pattern=r"\S", max_length=256, description="MLflow experiment.")

    @model_validator(mode="after")
    def _fits(self) -> "TrackingConfig":
        if self.uri is not None:
            check_tracking_uri("uri", self.uri)
        return self


class Config(Section):
    root: RootUri = Field("./runs", description="Location of the artifacts: a local path, file:// or s3://.")
    weights: RootUri | None = Field(
        None, description="Location of pretrained weights and their weights.yaml. None: the folder weights at the root."
    )
    seed: Seed = Field(
        0,
        description="Seed of which images are held out; and of both trainings and of samples, unless they have theirs.",
    )
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    encode: EncodeConfig = EncodeConfig()
    sit: SitConfig = SitConfig()
    sample: SampleConfig = SampleConfig()
    convergence: ConvergenceConfig = ConvergenceConfig()
    register: RegisterConfig = RegisterConfig()  # type: ignore[assignment]  # shadows ABCMeta.register, unused here
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        size, patch = self.data.image_size, self.tokenizer.patch_size
        check_factor(size, patch)
        check_masks(self.grid, self.tokenizer.mask, self.tokenizer.keep)
        check_patch(self.grid, self.sit.patch_size)
        if self.tokenizer.imported is None:
            self._check_training()
        check_average(self.sit, self.sample)
        batch_sizes = {"tokenizer.batch_size": self.tokenizer.batch_size, "sit.batch_size": self.sit.batch_size}
        workers = self.cluster.workers
        check_workers(workers, self.cluster.min_workers or workers, self.cluster.accumulate, batch_sizes)
        own = self.evaluate
        for name, weights in (("tokenizer.lpips", self.tokenizer.lpips), ("evaluate.lpips", own.lpips)):
            if weights is not None:
                check_lpips(name, size)
        if "self" in own.networks:
            check_own_network(self.data.known_name, self.data.classes)
        if own.network == "inception" and own.network_size != 299:
            raise ValueError("evaluate.network_size must be 299 for inception")
        if own.network == "dinov2_vitb14" and own.network_size % DINOV2_PATCH:
            raise ValueError(
                f"evaluate.network_size {own.network_size} is no multiple of {DINOV2_PATCH}, the pixels of a patch of "
                "dinov2_vitb14; 224 is common"
            )
        if own.classifier is not None:
            check_imagenet_classes(own.classifier, self.data.classes)
        lpips = own.lpips is not None
        check_gate(self.register.gate.metric, self.network_names, own.class_accuracy, lpips, own.classifier)
        return self

    def _check_training(self) -> None:
        size, own = self.data.image_size, self.tokenizer
        needed = smallest_discriminator_image(own.discriminator_layers)
        if size < needed:
            raise ValueError(
                f"tokenizer.discriminator_layers {own.discriminator_layers} requires images of "
                f"{needed} pixels, more than data.image_size {size}"
            )
        check_regularizer(own.regularizer, self.grid, self.smallest_side, self.smallest_perceptual_side)

    @property
    def tokenizer_seed(self) -> int:
        """The seed of the tokenizer's training."""
        return self.seed if self.tokenizer.seed is None else self.tokenizer.seed

    @property
    def sit_seed(self) -> int:
        """The seed of the generator's training."""
        return self.seed if self.sit.seed is None else self.sit.seed

    @property
    def sample_seed(self) -> int:
        """The seed of the noise that images start from."""
        return self.seed if self.sample.seed is None else self.sample.seed

    def sampling(self, **changed: Any) -> dict[str, Any]:
        """The arguments of `models.generator.Sampling`: everything that determines an image except label and index."""
        own = {
            "method": self.sample.method,
            "steps": self.sample.steps,
            "guidance": self.sample.guidance,
            "guidance_interval": self.sample.guidance_interval,
            "last_step": self.sample.last_step,
            "tolerances": self.sample.tolerances,
            "seed": self.sample_seed,
            "precision": self.sample.precision,
        }
        return {**own, **changed}

    @property
    def network_names(self) -> tuple[str, ...]:
        """The names of the feature networks in keys of metrics, that of the gate first."""
        return tuple(
            f"self-{self.data.known_name}" if network == "self" else network for network in self.evaluate.networks
        )

    @property
    def grid(self) -> int:
        """Side of a latent, h = w."""
        return self.data.image_size // self.tokenizer.patch_size

    @property
    def smallest_perceptual_side(self) -> int:
        """Side in latent cells of the smallest image that the tokenizer's perceptual term takes."""
        return perceptual_cells(self.tokenizer.lpips is not None, self.tokenizer.patch_size)

    @property
    def smallest_side(self) -> int:
        """Side in latent cells of the smallest image that all of the tokenizer's losses take, and D."""
        own = self.tokenizer
        of_discriminator = -(-smallest_discriminator_image(own.discriminator_layers) // own.patch_size)
        return max(of_discriminator, self.smallest_perceptual_side)

    @property
    def tokenizer_network(self) -> dict[str, Any]:
        """`TokenizerConfig.network` for these images."""
        return self.tokenizer.network(self.data.image_size)

    @property
    def sit_network(self) -> dict[str, Any]:
        """The arguments of `models.sit.SiT`, as stored in the manifest. ConfigError as `DataConfig.class_count`."""
        width, depth, heads = self.sit.shape
        return {
            "grid": self.grid,
            "latent_dim": self.tokenizer.latent_dim,
            "classes": self.data.class_count,
            "width": width,
            "depth": depth,
            "heads": heads,
            "patch_size": self.sit.patch_size,
            "qk_norm": self.sit.qk_norm,
            "time_scale": self.sit.time_scale,
        }
