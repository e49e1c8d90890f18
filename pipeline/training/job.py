"""A training job as plain data: config, inputs, lease, number of steps, checkpoint interval.

Nothing here needs torch or Ray: the driver creates a job, and each worker builds its trainer from it.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import Manifest, artifact_path
from pipeline.config import Config, SitConfig, TokenizerConfig
from pipeline.storage import Storage, open_storage
from pipeline.workflow import SECTIONS, section_of

STATE = "state"  # folder of an artifact with the last state of its training, as a checkpoint


@dataclass(frozen=True)
class Job:
    """One attempt at one trainer's stage."""

    config: Config
    stage: str
    fingerprint: str
    work: str  # folder at the root
    lease: str  # nonce of the lease under which this attempt runs
    outbox: str  # key of the run in MLflow
    inputs: dict[str, Manifest]
    threads: int  # of torch, in each worker
    start: Manifest | None = None  # whose weights it starts from, if any, until it has a checkpoint of its own
    shorter: Manifest | None = None  # a finished training of fewer steps, whose last state it goes on from

    @property
    def section(self) -> TokenizerConfig | SitConfig:
        """The config section of the stage."""
        return section_of(self.config, self.stage)


@dataclass(frozen=True)
class Loop:
    """The settings of the training loop. Created by `loop_of`."""

    name: str  # prefix of the metrics: tokenizer or sit
    steps: int
    batch_size: int
    checkpoint_every: int
    log_every: int
    keep: int
    storage: Storage
    work: str
    disk: Path  # folder of this node for a checkpoint while it is restored
    lease: str
    outbox: str
    stage: str
    fingerprint: str
    milestones: tuple[int, ...]
    keep_state: bool
    start: Manifest | None
    shorter: Manifest | None
    peak_flops: float  # of all workers together, in FLOP/s

    @property
    def artifact(self) -> str:
        """The artifact's folder at the root."""
        return artifact_path(self.stage, self.fingerprint)


def loop_of(job: Job, peak_flops: float) -> Loop:
    from pipeline.data import mirror_directory

    own = job.section
    return Loop(
        name=SECTIONS[job.stage],
        steps=own.steps,
        batch_size=own.batch_size,
        checkpoint_every=own.checkpoint_every,
        log_every=own.log_every,
        keep=job.config.cluster.keep_checkpoints,
        storage=open_storage(job.config.root),
        work=job.work,
        disk=mirror_directory(job.config.cluster.mirror) / "checkpoints",
        lease=job.lease,
        outbox=job.outbox,
        stage=job.stage,
        fingerprint=job.fingerprint,
        milestones=own.milestones if isinstance(own, SitConfig) else (),
        keep_state=isinstance(own, SitConfig) and own.keep_state,
        start=job.start,
        shorter=job.shorter,
        peak_flops=peak_flops,
    )
