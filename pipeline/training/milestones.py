"""Milestones: the averages of a training at chosen steps, which stay in its artifact.

Their files are written into the artifact's folder while it trains, and their hashes into the work folder, where an
attempt that resumes behind a milestone finds them. One that resumes in front of it comes past it and writes it again.
"""

import json
from collections.abc import Iterator
from typing import BinaryIO

from torch import Tensor

from pipeline.artifacts import ArtifactWriter, FileRecord, Manifest, check_lease
from pipeline.errors import ContractError
from pipeline.inference import milestone_place, weights_names
from pipeline.training.job import Loop
from pipeline.training.tensor_file import file_blocks

_BLOCK = 16 * 1024**2  # bytes

Averages = dict[float, dict[str, Tensor]]
"""As `Trainee.weights`."""


class Milestones:
    """The milestones of one training; for rank 0."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def write(self, step: int, averages: Averages) -> None:
        """Write the averages of this step, a milestone. LeaseError if another driver has taken over.

        It is done in front of the checkpoint of this step, so that no checkpoint has a milestone behind it that is
        missing. The training waits meanwhile: that is seldom, and takes no memory.
        """
        writer = self._writer()
        for decay, name in weights_names(milestone_place(step), list(averages)).items():
            writer.add_stream(file_blocks(averages[decay]), name)
        self._record(step, writer)

    def adopt(self, shorter: Manifest) -> None:
        """Copy the milestones of a shorter training. ContractError if a file is not what its manifest says."""
        for step in self.loop.milestones:
            place, writer = milestone_place(step), self._writer()
            for name in [name for name in shorter.files if name.startswith((f"{place}.", f"{place}-"))]:
                self._copy(shorter, name, writer)
            if writer.files:
                self._record(step, writer)

    def resume(self, step: int, averages: Averages) -> None:
        """Look for the milestones up to the step that is resumed from; its own is written if it is missing.

        A training that goes on from a shorter one may have one at the last step of that. ContractError if an earlier
        one is missing: the weights of that step are gone.
        """
        for milestone in self.loop.milestones:
            if milestone <= step and not self._is_there(milestone):
                if milestone < step:
                    raise ContractError(
                        f"milestone {milestone} of {self.loop.artifact} is missing at {self.loop.storage.root}, and "
                        f"the training is at step {step}",
                        f"Delete {self.loop.storage.uri(self.loop.work)} to train from the first step.",
                    )
                self.write(step, averages)

    def files(self) -> dict[str, FileRecord]:
        """The files of all milestones, with their hashes."""
        return {name: record for step in self.loop.milestones for name, record in self._recorded(step).items()}

    def _writer(self) -> ArtifactWriter:
        check_lease(self.loop.storage, f"{self.loop.work}/lease.json", self.loop.lease)
        return ArtifactWriter(self.loop.storage, self.loop.stage, self.loop.fingerprint)

    def _copy(self, shorter: Manifest, name: str, writer: ArtifactWriter) -> None:
        storage = self.loop.storage
        try:
            with storage.open(f"{shorter.name}/{name}") as stream:
                writer.add_stream(_blocks(stream), name)
        except FileNotFoundError:
            pass
        if writer.files.get(name) != shorter.files[name]:
            raise ContractError(
                f"{storage.uri(shorter.name)}/{name} is missing or does not match its manifest",
                f"Run `python -m pipeline artifact repair {shorter.name} --root {storage.root}`.",
            )

    def _path(self, step: int) -> str:
        return f"{self.loop.work}/{milestone_place(step)}.json"

    def _record(self, step: int, writer: ArtifactWriter) -> None:
        text = json.dumps({name: record.model_dump() for name, record in writer.files.items()})
        self.loop.storage.write(self._path(step), text.encode())

    def _recorded(self, step: int) -> dict[str, FileRecord]:
        """The files of a milestone by their record; empty without one."""
        try:
            text = self.loop.storage.read(self._path(step))
        except FileNotFoundError:
            return {}
        return {name: FileRecord.model_validate(record) for name, record in json.loads(text).items()}

    def _is_there(self, step: int) -> bool:
        files = self._recorded(step)
        return bool(files) and all(self.loop.storage.exists(f"{self.loop.artifact}/{name}") for name in files)


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block
