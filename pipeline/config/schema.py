"""The schema of the config: a tree of typed, described fields, with checks of their consistency.

Loading (presets, files, overrides) is in `loading.py`; the stages that depend on each field are listed in
`workflow/graph.py`. A field's description gives meaning and unit. Unknown keys are errors. No torch, ray or mlflow.
"""

import math
import warnings
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from models.choices import (
    LEVELS,
    MINIMUM_STEPS,
    PERCEPTUAL_WEIGHTS,
    TOP_LEVEL,
    UNIFORM,
    AlignmentHead,
    AlignmentKind,
    AlignmentSchedule,
    EvaluationPrecision,
    FeatureLoss,
    FeatureNetwork,
    Mask,
    Perceptual,
    Precision,
    Prediction,
    RegularizerKind,
    SamplerMethod,
    TokenizerKind,
)
from models.sizes import SIT_SIZES, smallest_discriminator_image
from pipeline.config.checks import (
    check_factor,
    check_gpu_shares,
    check_lpips,
    check_masks,
    check_metrics,
    check_patch,
    check_regularizer,
    check_tracking_uri,
    check_workers,
    perceptual_cells,
)
from pipeline.config.fields import (
    BatchSize,
    Betas,
    Clip,
    EmaDecay,
    ModelName,
    RootUri,
    Schedule,
    Section,
    Share,
    Shuffle,
    SourceUri,
    Steps,
    TrainerConfig,
    Warmup,
    WeightDecay,
    Weights,
)
from pipeline.config.kinds import check_kind, network_of
from pipeline.errors import ConfigError

# The section `register` shadows a method of ABCMeta that is not used here.
warnings.filterwarnings("ignore", message='Field name "register"')


class DataConfig(Section):
    format: Literal["digits", "folder", "parquet", "webdataset"] = Field(
        "folder",
        description="Format of the source: scikit-learn's built-in digits, one folder per class (as ImageNet), "
        "Parquet files with image and label columns (as Hugging Face), or WebDataset tars.",
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


class TokenizerConfig(TrainerConfig):
    """The autoencoder, its regularizer and its training. The terms' weights are DeTok's, for images in [0, 1]."""

    kind: TokenizerKind = Field(
        "vit", description="Network: the paper's vit, diffusers' AutoencoderKL sd-vae, or its AutoencoderDC dc-ae."
    )
    imported: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="Fingerprint of a tokenizer from `import tokenizer`, used as it is. None: one is trained."
    )

    steps: Steps = 500_000
    batch_size: BatchSize = 512
    betas: Betas = (0.9, 0.95)
    weight_decay: WeightDecay = 1e-4
    warmup: Warmup = 0.25
    decay: Schedule = "cosine"
    clip: Clip = 3.0
    ema_decay: EmaDecay = 0.999
    patch_size: int = Field(16, ge=1, description="Spatial downsampling factor f; of a ViT the side of a patch.")
    latent_dim: int = Field(16, ge=1, description="Latent channels d.")
    width: int | None = Field(None, ge=8, description="vit: channels of a transformer block. None: 768.")
    depth: int | None = Field(None, ge=1, description="vit: blocks in the encoder, and in the decoder. None: 12.")
    heads: int | None = Field(None, ge=1, description="vit: attention heads. None: 12.")
    hidden: int | None = Field(None, ge=1, description="vit: hidden width of the SwiGLU feed-forward. None: 2048.")
    block_out_channels: Annotated[tuple[int, ...], Field(min_length=2, max_length=8)] | None = Field(
        None, description="sd-vae: channels of each resolution; their number determines f. None: 128, 256, 512, 512."
    )
    layers_per_block: int | None = Field(
        None, ge=1, description="sd-vae: residual blocks of a resolution in the encoder. None: 2."
    )
    norm_num_groups: int | None = Field(None, ge=1, description="sd-vae: groups of every GroupNorm. None: 32.")
    regularizer: RegularizerKind = Field(
        "spectral",
        description="Regularizer of the latent; spectral: MLSR, equivariance: EQ-VAE, scale: scale equivariance, "
        "matching and spectrum_prior: spectrum matching by shared masks, or by a prior.",
    )
    mask: Mask = Field("gain", description="Interpretation of M_l in Eq. 3.")
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="Share of frequencies that M_l leaves unchanged at every level."
    )
    level_probabilities: tuple[Share, Share, Share, Share] = Field(
        UNIFORM, description="Probabilities of levels 0 to 3 in training, which sum to 1; uniform in Eq. 1."
    )
    level_per_sample: bool = Field(False, description="Draw the level per sample instead of per step (Eq. 1).")
    mse_weight: float = Field(1.0, ge=0, description="Weight of the mean squared difference of images in [0, 1].")
    l1_weight: float = Field(0.0, ge=0, description="Weight of their mean absolute difference, as in SD-VAE.")
    kl_weight: float = Field(1e-6, ge=0, description="Weight of KL (summed over a latent, mean over images).")
    perceptual: Perceptual = Field(
        "lpips+convnext", description="The perceptual term; lpips+convnext is (LPIPS + 0.1 ConvNeXt-S) / 1.1."
    )
    perceptual_weight: float = Field(1.0, ge=0, description="Weight of the perceptual term.")
    lpips: Weights | None = Field(None, description="VGG-16's weights for LPIPS. None: vgg16, where the term has it.")
    convnext: Weights | None = Field(
        None, description="ConvNeXt-S's weights. None: convnext-small, where the term has it."
    )
    efficientnet: Weights | None = Field(
        None, description="EfficientNet-Lite0's weights. None: efficientnet-lite0, where the term has it."
    )
    adversarial_weight: float = Field(0.1, ge=0, description="Weight of the PatchGAN term.")
    scale_weight: float = Field(
        0.25, ge=0, description="Weight of the scaled latent's reconstruction, for regularizer scale."
    )
    spectrum_weight: float = Field(
        0.01,
        ge=0,
        description="Weight of KL between the spectra of image and latent in nats, for regularizer spectrum_prior.",
    )
    spectrum_delta: float = Field(
        1.0, ge=0, description="Power of the frequency that flattens the image's spectrum there; 0: as it is."
    )
    discriminator_width: int = Field(64, ge=1, description="Channels of D's first layer.")
    discriminator_layers: int = Field(3, ge=1, le=10, description="Strided layers of D.")
    discriminator_learning_rate: float = Field(
        1e-4, gt=0, description="Peak of D's learning rate, on the tokenizer's schedule."
    )
    discriminator_start: Share = Field(0.5, description="Share of the steps after which D trains.")
    adversarial_start: Share = Field(
        0.5,
        description="Share of the steps after which the adversarial term is used; DeTok uses it from D's start.",
    )

    @field_validator("level_probabilities", mode="before")
    @classmethod
    def _of_each_level(cls, given: Any) -> Any:
        if not isinstance(given, (list, tuple)) or len(given) != LEVELS:
            raise ValueError(f"it needs {LEVELS} probabilities, those of levels 0 to {TOP_LEVEL}")
        return given

    @model_validator(mode="after")
    def _fits(self) -> "TokenizerConfig":
        check_kind(self.kind, self.imported, self._fields_of_kinds, self.patch_size)
        if not math.isclose(total := sum(self.level_probabilities), 1.0, abs_tol=1e-6):
            raise ValueError(f"level_probabilities must sum to 1, not {total:g}")
        if self.adversarial_start < self.discriminator_start:
            raise ValueError("adversarial_start must not be less than discriminator_start")
        return self

    @model_validator(mode="before")
    @classmethod
    def _name_weights(cls, given: Any) -> Any:
        """The weights that the perceptual term needs by their names in the catalogue, where no others are given.

        A tokenizer that is imported is not trained and needs none.
        """
        if not isinstance(given, dict) or given.get("imported") is not None:
            return given
        term = given.get("perceptual", cls.model_fields["perceptual"].default)
        if term not in get_args(Perceptual):  # which the field itself refuses
            return given
        return {**given, **{field: given.get(field) or name for field, name in PERCEPTUAL_WEIGHTS[term].items()}}

    @model_validator(mode="after")
    def _uses_its_weights(self) -> "TokenizerConfig":
        for field in ("lpips", "convnext", "efficientnet"):
            if getattr(self, field) is not None and field not in PERCEPTUAL_WEIGHTS[self.perceptual]:
                raise ValueError(f"{field} is given, and perceptual {self.perceptual} does not use it")
        return self

    @property
    def _fields_of_kinds(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "depth": self.depth,
            "heads": self.heads,
            "hidden": self.hidden,
            "block_out_channels": self.block_out_channels,
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_num_groups,
        }

    def network(self, image_size: int) -> dict[str, Any]:
        """The arguments of `models.tokenizers.build`, as stored in the manifest.

        Of an imported tokenizer its manifest has them; these are then those of its kind's public weights.
        """
        return network_of(self.kind, self._fields_of_kinds, image_size, self.patch_size, self.latent_dim)


class EvaluateConfig(Section):
    images: int = Field(50_000, ge=1, description="Maximum number of validation images to reconstruct.")
    batch_size: int = Field(64, ge=1, description="Images per forward pass.")
    network: FeatureNetwork = Field(
        "inception", description="Feature network of the Frechet distances; their keys contain its name."
    )
    network_weights: Weights | None = Field(
        None, description="Its weights. None: inception, and for efficientnet_lite0 those in its Python package."
    )
    lpips: Weights | None = Field(
        None, description="VGG-16's weights, such as vgg16, to measure LPIPS of reconstructions. None: not measured."
    )
    network_size: int = Field(299, ge=32, description="Side to which images are resized for the network, in pixels.")
    reference_images: int = Field(50_000, ge=2, description="Training images in the reference of a Frechet distance.")
    precision: EvaluationPrecision = Field(
        "fp32",
        description="fp32, tf32: TF32 products on GPUs, or bf16: also autocast of the tokenizer, in analyze too.",
    )
    class_accuracy: bool = Field(
        False, description="Classify samples with an SVC trained on real images (for small sets such as digits)."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_weights(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("network", "inception") != "inception":
            return given
        return {**given, "network_weights": given.get("network_weights") or "inception"}


class EncodeConfig(Section):
    batch_size: int | None = Field(
        None, ge=1, description="Images per forward pass, always as many; unless set 128 on GPUs and 16 on CPUs."
    )
    shard_rows: int = Field(2048, ge=1, le=4096, description="Latents per shard.")
    precision: Precision = Field("bf16", description="Autocast of the encoder; moments are stored in fp16.")
    canary_margin: float = Field(
        1.0, ge=0, description="PSNR in dB that decoded latents may lose against the tokenizer's own in fp32."
    )


class SitConfig(TrainerConfig):
    """The generator, the alignment of its features, and its training."""

    steps: Steps = 400_000
    batch_size: BatchSize = 256
    betas: Betas = (0.9, 0.999)
    weight_decay: WeightDecay = 0.0
    warmup: Warmup = 0.0
    decay: Schedule = "constant"
    clip: Clip = 1.0
    ema_decay: EmaDecay = 0.9999
    size: Literal["S", "B", "L", "XL", "custom"] = Field(
        "XL", description="SiT size; custom uses width, depth and heads."
    )
    width: int | None = Field(None, ge=8, description="Channels of a block, for size custom.")
    depth: int | None = Field(None, ge=1, description="Blocks, for size custom.")
    heads: int | None = Field(None, ge=1, description="Attention heads, for size custom.")
    patch_size: int = Field(1, ge=1, description="Side of a patch of the latent in cells, a token each.")
    level: int = Field(2, ge=0, le=TOP_LEVEL, description="Denoising level l of the generator's latents.")
    prediction: Prediction = Field("velocity", description="What the network predicts.")
    alignment: AlignmentKind = Field("fda", description="Alignment of features (Eq. 7).")
    alignment_levels: Literal["fixed", "random"] = Field(
        "fixed", description="FDA's pair of levels: (level, 3), or random with hi > lo."
    )
    alignment_weight: float = Field(0.25, ge=0, description="Mean of lambda(t) in Eq. 8.")
    alignment_schedule: AlignmentSchedule = Field(
        "linear", description="Shape of lambda(t): linear is 2 t lambda0, largest at noise."
    )
    alignment_loss: FeatureLoss = Field("cosine", description="Distance between features.")
    alignment_head: AlignmentHead = Field(
        "mlp", description="Projection of the student's features; none: exactly Eq. 7."
    )
    student_block: int | None = Field(None, ge=1, description="Aligned student block. None: 8 of 28, in proportion.")
    teacher_block: int | None = Field(None, ge=1, description="Aligned teacher block. None: 20 of 28, in proportion.")
    label_dropout: Share = Field(0.1, description="Share of labels replaced by the null label.")

    @model_validator(mode="after")
    def _fits(self) -> "SitConfig":
        given = (self.width, self.depth, self.heads)
        if (self.size == "custom") != all(value is not None for value in given):
            raise ValueError("width, depth and heads must be set for size custom, and only then")
        if self.width is not None and self.heads is not None and self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 4 x heads ({4 * self.heads})")
        if self.alignment == "fda" and self.level >= TOP_LEVEL:
            raise ValueError(f"alignment fda needs a level above sit.level; level {TOP_LEVEL} has none")
        for name, block in (("student_block", self.student_block), ("teacher_block", self.teacher_block)):
            if block is not None and block > self.shape[1]:
                raise ValueError(f"{name} {block} exceeds the number of blocks, {self.shape[1]}")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and heads."""
        if self.size == "custom":
            assert self.width is not None
            assert self.depth is not None
            assert self.heads is not None
            return self.width, self.depth, self.heads
        return SIT_SIZES[self.size]

    @property
    def aligned_blocks(self) -> tuple[int, int]:
        """Student's and teacher's block, counted from 1."""
        depth = self.shape[1]
        student = self.student_block or max(1, round(depth * 8 / 28))
        teacher = self.teacher_block or max(student, round(depth * 20 / 28))
        return student, teacher


class SampleConfig(Section):
    count: int = Field(50_000, ge=1, description="Number of images, with class labels in turn.")
    batch_size: int = Field(125, ge=1, description="Images per forward pass and per task.")
    method: SamplerMethod = Field("sde", description="euler and heun: ODE; sde: Euler-Maruyama.")
    steps: int = Field(250, ge=1, description="Steps from noise to data.")
    guidance: float = Field(1.8, ge=1.0, description="Scale of classifier-free guidance; 1: no guidance.")
    guidance_interval: tuple[Share, Share] = Field((0.0, 0.7), description="Interval of times t with guidance.")
    seed: int = Field(0, ge=0, description="Image i starts from the noise of (seed, i).")
    precision: Precision = Field("bf16", description="Autocast of the generator.")

    @model_validator(mode="after")
    def _fits(self) -> "SampleConfig":
        if self.steps < MINIMUM_STEPS[self.method]:
            raise ValueError(
                f"method {self.method} needs steps of at least {MINIMUM_STEPS[self.method]}: the last is the mean alone"
            )
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError("guidance_interval must not begin after its end")
        return self

    def sampling(self, **changed: Any) -> dict[str, Any]:
        """The arguments of `models.generator.Sampling`: everything that determines an image except label and index."""
        own = {
            "method": self.method,
            "steps": self.steps,
            "guidance": self.guidance,
            "guidance_interval": self.guidance_interval,
            "seed": self.seed,
            "precision": self.precision,
        }
        return {**own, **changed}


class GateConfig(Section):
    """The conditions for a candidate to become champion."""

    metric: str = Field(
        "samples/frechet_distance/inception",
        pattern="^(reconstruction|samples|latent)/.",
        description="The metric to compare.",
    )
    direction: Literal["lower", "higher"] = Field("lower", description="Whether lower or higher is better.")
    minimum: float | None = Field(None, description="Worst value for any champion, including the first.")
    margin: float = Field(0.0, ge=0, description="Minimum improvement of a candidate over the champion.")


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
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of all random draws in training.")
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    encode: EncodeConfig = EncodeConfig()
    sit: SitConfig = SitConfig()
    sample: SampleConfig = SampleConfig()
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
            self._check_discriminator()
        batch_sizes = {"tokenizer.batch_size": self.tokenizer.batch_size, "sit.batch_size": self.sit.batch_size}
        workers = self.cluster.workers
        check_workers(workers, self.cluster.min_workers or workers, self.cluster.accumulate, batch_sizes)
        own = self.evaluate
        for name, weights in (("tokenizer.lpips", self.tokenizer.lpips), ("evaluate.lpips", own.lpips)):
            if weights is not None:
                check_lpips(name, size)
        measures_lpips = own.lpips is not None
        check_metrics(self.register.gate.metric, own.network, own.network_size, own.class_accuracy, measures_lpips)
        return self

    def _check_discriminator(self) -> None:
        size, own = self.data.image_size, self.tokenizer
        needed = smallest_discriminator_image(own.discriminator_layers)
        if size < needed:
            raise ValueError(
                f"tokenizer.discriminator_layers {own.discriminator_layers} requires images of "
                f"{needed} pixels, more than data.image_size {size}"
            )
        check_regularizer(own.regularizer, self.grid, self.smallest_side, self.smallest_perceptual_side)

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
    def sit_network(self) -> dict[str, int]:
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
        }
