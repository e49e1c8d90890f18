"""A model in MLflow's registry, for tests that only use one: tiny networks with random weights, on SQLite."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from models.sit import SiT
from pipeline.artifacts import ArtifactWriter, Lease, Manifest
from pipeline.config import Config
from pipeline.stages import register
from pipeline.storage import open_storage
from pipeline.tracking import Outbox, tracking_uri
from pipeline.workflow import StageContext
from tests.support.artifacts import artifact_writer, fingerprint_of, manifest, put
from tests.support.contexts import untrained_tokenizer
from tests.support.trainers import small_config


def registered_model(root: Path) -> str:
    """Run the stage `register` at this root; the first candidate becomes champion. The URI of its MLflow."""
    config = small_config(root, "register.gate.minimum=0")
    inputs, fingerprint = _inputs(config, root / "scratch"), fingerprint_of(config, "register")
    storage, outbox = open_storage(config.root), Outbox(open_storage(config.root), "test/register")
    Outbox(storage, "test").open("test", {})
    outbox.open("register", {}, parent="test")
    lease = Lease(storage, "register", fingerprint)
    context = StageContext(
        config=config,
        stage="register",
        fingerprint=fingerprint,
        storage=storage,
        inputs=inputs,
        writer=ArtifactWriter(storage, "register", fingerprint),
        work=lease.folder,
        scratch=root / "scratch",
        lease=lease,
        outbox=outbox,
        progress=lambda *_, **__: None,
    )
    try:
        assert register.run(context).details["promoted"]
    finally:
        lease.release(finished=True)
    return tracking_uri(config)


def _inputs(config: Config, scratch: Path) -> dict[str, Manifest]:
    prepare = put(config, manifest(config, "prepare", artifact_writer(config, "prepare"), {}, class_names=[]))
    tokenizer = untrained_tokenizer(config, prepare, scratch)
    made = {"prepare": prepare, "train-tokenizer": tokenizer}
    encode = put(config, manifest(config, "encode", artifact_writer(config, "encode"), made))
    accuracy = manifest(config, "evaluate-samples", artifact_writer(config, "evaluate-samples"), {})
    return {
        "train-tokenizer": tokenizer,
        "encode": encode,
        "train-sit": _untrained_sit(config, scratch),
        "evaluate-tokenizer": manifest(config, "evaluate-tokenizer", artifact_writer(config, "evaluate-tokenizer"), {}),
        "evaluate-samples": accuracy.model_copy(update={"metrics": {config.register.gate.metric: 0.5}}),
    }


def _untrained_sit(config: Config, scratch: Path) -> Manifest:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SiT(**config.sit_network)
    save_file(network.state_dict(), scratch / "sit.safetensors")
    writer = artifact_writer(config, "train-sit")
    writer.add(scratch / "sit.safetensors", "weights.safetensors")
    channels = config.tokenizer.latent_dim
    statistics = {"mean": [0.0] * channels, "std": [1.0] * channels}
    own = config.sit
    details = {"network": config.sit_network, "level": own.level, "prediction": own.prediction}
    return put(config, manifest(config, "train-sit", writer, {}, statistics=statistics, **details))
