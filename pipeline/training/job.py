"""A training as plain data: what is trained from what, under which lease, and how long and how often it is saved.

Nothing here needs torch or Ray: the driver describes a job, and whoever trains builds everything from it.
"""

from dataclasses import dataclass

from pipeline.artifacts import Manifest
from pipeline.config import Config, SitConfig, TokenizerConfig
from pipeline.storage import Storage, open_storage

SECTIONS = {"train-tokenizer": "tokenizer", "train-sit": "sit"}  # stage to its section, which also prefixes its metrics


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

    @property
    def section(self) -> TokenizerConfig | SitConfig:
        """The stage's part of the config."""
        section: TokenizerConfig | SitConfig = getattr(self.config, SECTIONS[self.stage])
        return section


@dataclass(frozen=True)
class Loop:
    """How long, how often, and where to: what the loop knows of a job. `loop_of` makes it."""

    name: str  # prefix of the metrics: tokenizer or sit
    steps: int
    batch_size: int
    checkpoint_every: int
    log_every: int
    keep: int
    storage: Storage
    work: str
    lease: str
    outbox: str
    stage: str
    fingerprint: str
    peak_flops: float  # of all workers together, in FLOP/s


def loop_of(job: Job, peak_flops: float) -> Loop:
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
        lease=job.lease,
        outbox=job.outbox,
        stage=job.stage,
        fingerprint=job.fingerprint,
        peak_flops=peak_flops,
    )
