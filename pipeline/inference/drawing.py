"""The command `sample`: which pictures are asked for, where they are drawn from, and drawing them batch by batch.

Files are written by `picture_files.py`; the registered model, the other source, is in `registered.py`.
Legend: B pictures of a batch, H W pixels.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.errors import ContractError
from pipeline.storage import open_storage

_NETWORKS = ("train-tokenizer", "train-sit")  # the stages whose artifacts are drawn with

Pixels = npt.NDArray[np.uint8]
Draw = Callable[[Sequence[int], Sequence[int], Mapping[str, Any]], Pixels]
"""(label, index, sampling) -> uint8 (B, H, W, 3)."""


class Opened(NamedTuple):
    """A source with its networks loaded."""

    identity: str
    """Differs where weights do."""
    draw: Draw


@dataclass(frozen=True)
class Source:
    """A generator to draw from. What is known of it before its networks are loaded."""

    classes: int
    class_names: Sequence[str]
    """By label; empty where they are not known."""
    image_size: int
    sampling: Mapping[str, Any]
    """The arguments of `models.generator.Sampling` where nothing else is asked for."""
    batch_size: int
    open: Callable[[], Opened]
    """Loads the networks. ContractError if they are not there."""


def trained_source(config: Config, artifacts: dict[str, Manifest]) -> Source:
    """The generator of a config, from its artifacts by stage; those of the trainers may be missing until it is opened.

    ConfigError as `DataConfig.class_count`.
    """
    names = artifacts["prepare"].details.get("class_names") if "prepare" in artifacts else None
    return Source(
        classes=config.data.class_count,
        class_names=names or [],
        image_size=config.data.image_size,
        sampling=config.sampling(),
        batch_size=config.sample.batch_size,
        open=lambda: _open_trained(config, artifacts),
    )


def _open_trained(config: Config, artifacts: dict[str, Manifest]) -> Opened:
    for name in _NETWORKS:
        if name not in artifacts:
            raise ContractError(f"the {name} artifact of this preset is missing", "Run `python -m pipeline run` first.")
    import torch

    from models.generator import Sampling
    from pipeline.inference.networks import load_generator, task_device

    decay = config.sample.ema_decay
    generator = load_generator(open_storage(config.root), artifacts, task_device(), decay)

    def draw(labels: Sequence[int], indices: Sequence[int], sampling: Mapping[str, Any]) -> Pixels:
        images_BCHW = generator.draw(torch.tensor(labels), indices, Sampling(**sampling))
        return images_BCHW.permute(0, 2, 3, 1).cpu().numpy()

    return Opened(identity(artifacts, decay), draw)


def identity(artifacts: dict[str, Manifest], decay: float | None) -> str:
    """Of the networks of these artifacts: what they were trained as, their files' content, and which average it is."""
    used = [artifacts[name] for name in _NETWORKS]
    return json.dumps([*([one.fingerprint, one.content] for one in used), decay])


@dataclass(frozen=True)
class Request:
    """`count` pictures of each label in `labels`, of a generator with `classes` classes.

    Picture i of class c starts from the noise of index i * classes + c: the same picture whatever else is asked for,
    and that of the stage `sample`, whose labels are its indices modulo `classes`. First come all classes' pictures 0,
    then all pictures 1, so that any part of them has the classes alike, as the Inception Score over parts wants it.
    """

    labels: Sequence[int]
    count: int
    classes: int

    def __len__(self) -> int:
        return self.count * len(self.labels)

    def label(self, place: int) -> int:
        """Of the picture at this place, from 0 to len - 1."""
        return self.labels[place % len(self.labels)]

    def number(self, place: int) -> int:
        """The picture's i among those of its class."""
        return place // len(self.labels)

    def index(self, place: int) -> int:
        """Of the picture's noise."""
        return self.number(place) * self.classes + self.label(place)

    def digest(self, identity: str, sampling: Mapping[str, Any]) -> str:
        """12 hex digits; equal where the picture at a place is. The count plays no role."""
        asked = [identity, dict(sampling), list(self.labels), self.classes]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


class Batch(NamedTuple):
    """Pictures at the places `start` to `stop` - 1 of a request."""

    start: int
    stop: int
    images_BHWC: Pixels


class Known(Protocol):
    """Where batches are looked up before they are drawn, and kept."""

    def load(self, start: int, stop: int) -> Pixels | None:
        """The pictures of these places; None if they are not there."""

    def save(self, batch: Batch) -> None: ...


def draw(
    opened: Opened, request: Request, sampling: Mapping[str, Any], batch_size: int, known: Known | None = None
) -> Iterator[Batch]:
    """The pictures of a request in batches, in the order of their places. What is `known` is not drawn again."""
    for start in range(0, len(request), batch_size):
        stop = min(start + batch_size, len(request))
        images_BHWC = known.load(start, stop) if known else None
        if images_BHWC is None:
            places = range(start, stop)
            images_BHWC = opened.draw(
                [request.label(place) for place in places], [request.index(place) for place in places], sampling
            )
            if known:
                known.save(Batch(start, stop, images_BHWC))
        yield Batch(start, stop, images_BHWC)
