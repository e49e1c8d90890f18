"""A root at which the stage `register` can run: tiny networks with random weights, and a real MLflow."""

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import save_file

from models.sit import SiT
from models.tokenizers import TokenizerNetwork
from models.tokenizers.vit import Tokenizer
from pipeline.artifacts import ArtifactWriter, Lease, Manifest, Outcome, commit
from pipeline.config import Config, load_config
from pipeline.stages import register
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import open_storage
from pipeline.tracking import Outbox, tracking_uri
from pipeline.workflow import StageContext

TOKENIZER: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "latent_dim": 3,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "hidden": 24,
}
SIT: dict[str, Any] = {
    "grid": 4,
    "latent_dim": 3,
    "classes": 10,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "time_scale": 1.0,
}
STATISTICS = {"mean": [0.5, -1.0, 0.0], "std": [2.0, 0.3, 1.0]}
METRIC = "samples/class_accuracy"
OF_REFERENCE = "samples/precision/efficientnet_lite0"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def random_networks() -> tuple[Tokenizer, SiT]:
    """Tiny, with random weights, SiT's zero layers included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, sit = Tokenizer(**TOKENIZER), SiT(**SIT)
        for parameter in sit.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return tokenizer, sit


class Registration:
    """A root with everything that `register` reads, and an MLflow: by default the SQLite database of the root."""

    def __init__(self, folder: Path, networks: tuple[TokenizerNetwork, SiT], uri: str | None = None) -> None:
        self.folder, self.networks = folder, networks
        self.storage = open_storage(str(folder / "runs"))
        assert isinstance(self.storage, LocalStorage)
        self.uri = uri
        self.reference = "1,438 images of the training split"
        self.sample = digest("sample")  # the fingerprint of the samples that were measured

    def config(self, **gate: Any) -> Config:
        overrides = [f"register.gate.{name}={value}" for name, value in gate.items()]
        if self.uri:
            overrides.append(f"tracking.uri={self.uri}")
        return load_config("quickstart", overrides, root=self.storage.root)

    @property
    def tracking(self) -> str:
        return tracking_uri(self.config())

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.tracking, registry_uri=self.tracking)

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model("denoising-vae").aliases
        return {name: str(version) for name, version in found.items()}

    def fingerprint(self, accuracy: float) -> str:
        return digest(f"register {accuracy}")

    def register(self, accuracy: float, **gate: Any) -> Outcome:
        """Run the stage as the runner does, for a candidate of that class accuracy."""
        config, fingerprint = self.config(**gate), self.fingerprint(accuracy)
        outbox = Outbox(self.storage, f"pipeline-{fingerprint[:8]}/register")
        Outbox(self.storage, f"pipeline-{fingerprint[:8]}").open("quickstart", {})
        outbox.open("register", {}, parent=f"pipeline-{fingerprint[:8]}")
        lease = Lease(self.storage, "register", fingerprint)
        try:
            context = StageContext(
                config=config,
                stage="register",
                fingerprint=fingerprint,
                storage=self.storage,
                inputs=self.inputs(accuracy),
                writer=ArtifactWriter(self.storage, "register", fingerprint),
                work=lease.folder,
                scratch=self.folder / f"scratch-{time.time_ns()}",
                lease=lease,
                outbox=outbox,
                progress=lambda *_, **__: None,
                say=lambda _: None,
            )
            return register.run(context)
        finally:
            lease.release(finished=True)

    def predict(self, rows: dict[str, list[int]], version: str = "@champion", **params: Any) -> list[np.ndarray]:
        """The images that a version of the registered model draws, (H, W, 3) uint8 each."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.tracking)
            model = mlflow.pyfunc.load_model(f"models:/denoising-vae{version}")
            table = model.predict(pd.DataFrame(rows), params=params)
        assert list(table.columns) == ["image"]
        return [np.asarray(Image.open(io.BytesIO(png))) for png in table["image"]]

    def inputs(self, accuracy: float) -> dict[str, Manifest]:
        tokenizer, sit = self.networks
        prepare = self.commit("prepare", {}, class_names=[str(digit) for digit in range(10)])
        made = {
            "train-tokenizer": self.commit(
                "train-tokenizer",
                tokenizer.state_dict(),
                kind=tokenizer.kind,
                network=tokenizer.network,
                filter={"mask": "gain", "keep": 0.5},
            ),
            "encode": self.commit("encode", {}, inputs={"prepare": prepare.fingerprint}),
            "train-sit": self.commit(
                "train-sit",
                sit.state_dict(),
                network=SIT,
                level=2,
                path="linear",
                prediction="velocity",
                statistics=STATISTICS,
            ),
            "evaluate-tokenizer": self.commit("evaluate-tokenizer", {}, metrics={"reconstruction/psnr": 30.5}),
        }
        made["evaluate-samples"] = self.commit(
            f"evaluate-samples {accuracy} against {self.reference}",
            {},
            inputs={"reference": digest(self.reference), "sample": self.sample},
            metrics={METRIC: accuracy, OF_REFERENCE: accuracy},
            reference=self.reference,
        )
        return made

    def commit(
        self,
        name: str,
        weights: dict[str, torch.Tensor],
        *,
        inputs: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
        **details: Any,
    ) -> Manifest:
        """An artifact, unless it is there already; `name` is the stage, and what tells two of it apart."""
        stage, fingerprint = name.split()[0], digest(name)
        writer = ArtifactWriter(self.storage, stage, fingerprint)
        if weights:
            path = self.folder / "weights"
            save_file(weights, path)
            writer.add(path, "weights.safetensors")
        manifest = Manifest(
            stage=stage,
            fingerprint=fingerprint,
            inputs=inputs or {},
            input_contents={},
            config={"data.format": "digits", "data.uri": None, "data.revision": "d1"} if stage == "prepare" else {},
            files=writer.files,
            rows=1,
            metrics=metrics or {},
            details=details,
            seconds=1.0,
            git_sha=None,
            image_digest=None,
            created="2026-01-01T00:00:00+00:00",
        )
        if not self.storage.exists(f"{writer.folder}/manifest.json"):
            lease = Lease(self.storage, stage, fingerprint)
            commit(self.storage, manifest, lease)
            lease.release(finished=True)
        return manifest
