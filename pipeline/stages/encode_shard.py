"""The workers of encode: processes that decode images, and encoders, each of which makes whole shards of latents.

An encoder asks a decoder on its node for the chunks of a shard, encodes them in their order, checks the result and
writes the shard with its record. Nothing of a shard depends on other shards or on timing, so if its encoder dies,
another makes the same bytes. Legend: N rows, b rows of a forward pass, D latent channels, h w latent rows and columns.
"""

import ctypes
import hashlib
import json
import pickle
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import cluster
from pipeline.artifacts import ArtifactWriter, Manifest, check_lease, local_copies
from pipeline.data import Chunk, Decoding, chunk_rows, decoded_chunks, write_latent_shard
from pipeline.stages.encode_gate import CANARIES, REFERENCE_ROWS, Reference, fault, measure, priorities
from pipeline.storage import open_storage

_BUFFERED = 3  # chunks that a decoder may be ahead
_LARGE_BUFFER = 1 << 30  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Plan:
    """The settings of every worker."""

    root: str
    prepare: Manifest
    tokenizer: Manifest
    fingerprint: str
    work: str
    lease: str  # nonce of the driver
    decoding: Decoding
    batch_size: int
    precision: str
    canary_margin: float
    retries: int  # of a decoder whose process or node dies

    @property
    def inputs(self) -> str:
        """A digest of the contents that shards are made from. A record of other contents is of no use."""
        return hashlib.sha256(f"{self.prepare.content} {self.tokenizer.content}".encode()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """One file of latents, from rows `start` to `start + rows - 1` of a prepared file."""

    index: int
    source: str
    start: int
    rows: int


def record_path(work: str, index: int) -> str:
    return f"{work}/shards/{index:05d}.json"


class Refused(Exception):  # noqa: N818  # a verdict, not an error: the shard is encoded once more
    """The quality gate did not pass a shard."""


def decode(root: str, prepare: Manifest, shard: Shard, decoding: Decoding, size: int) -> Iterator[Chunk]:
    """The task of a decoder: the images of a shard in chunks of `size` rows.

    `prepare` needs only the record of the shard's file. ContractError if that does not match.
    """
    with TemporaryDirectory(prefix="dvae-decode-") as folder:
        path = local_copies(open_storage(root), prepare, [shard.source], Path(folder))[shard.source]
        yield from decoded_chunks(path, shard.start, shard.rows, size, decoding)


@dataclass
class _Rows:
    """What is known of the rows of a shard before they are encoded, and the pixels of its reference."""

    keys: list[str] = field(default_factory=list)
    labels: list[npt.NDArray[np.int32]] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    reference: list[tuple[float, int, npt.NDArray[np.uint8]]] = field(default_factory=list)  # priority, row, pixels

    def add(self, chunk: Chunk, priority: npt.NDArray[np.float64]) -> None:
        for i in np.flatnonzero(chunk.readable):
            candidate = float(priority[chunk.start + i])
            if len(self.reference) < REFERENCE_ROWS or candidate < self.reference[-1][0]:
                self.reference.append((candidate, len(self.keys), chunk.pixels[i].copy()))
                self.reference.sort(key=lambda entry: entry[0])
                del self.reference[REFERENCE_ROWS:]
            self.keys.append(chunk.keys[i])
        self.labels.append(chunk.labels[chunk.readable])
        self.unreadable += chunk.unreadable


class Encoder:
    """An actor of the pool. The networks are loaded while the first images are decoded."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._device_lock = threading.Lock()  # calls for several shards overlap
        self._networks = ThreadPoolExecutor(1).submit(self._load)

    def _load(self) -> Any:
        """(tokenizer, matrices of the levels, device)."""
        from pipeline.inference import load_tokenizer, task_device

        device = task_device()
        if device.type == "cpu":
            _keep_large_buffers()
        with self._computing():
            tokenizer, latent_filter = load_tokenizer(open_storage(self.plan.root), self.plan.tokenizer, device)
        return tokenizer, latent_filter.matrices, device

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """The networks are this thread's, and on a CPU it is alone: the other cores have encoders of their own."""
        import torch

        with self._device_lock, torch.inference_mode():
            if torch.get_num_threads() > 1 and not torch.cuda.is_available():  # a setting of each thread
                torch.set_num_threads(1)
            yield

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make one shard. Returns its index, and the error if there was one.

        Errors are returned, since Ray Data is told to ignore those that it raises itself for an encoder that died.
        """
        shard = Shard(**json.loads(row["shard"]))
        try:
            self._make(shard)
        except Exception as error:  # the driver raises it
            return {"index": shard.index, "error": _dumped(error)}
        return {"index": shard.index, "error": b""}

    def _make(self, shard: Shard) -> None:
        rows, means, logvars = _Rows(), list[Any](), list[Any]()
        priority = priorities(shard.index, shard.rows)
        for chunk in self._chunks(shard):
            rows.add(chunk, priority)
            mean, logvar = self._encode(chunk.pixels, self.plan.precision)
            means.append(mean[chunk.readable])
            logvars.append(logvar[chunk.readable])
        self._write(shard, rows, np.concatenate(means), np.concatenate(logvars))

    def _chunks(self, shard: Shard) -> Iterator[Chunk]:
        """The shard's chunks from a decoder in a process of its own, on this node unless that has gone."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        plan = self.plan
        task: Any = ray.remote(decode).options(
            num_cpus=0,  # there are as many as CPUs already, and with a device none must wait for one
            num_returns="streaming",
            max_retries=plan.retries,
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True),
            _generator_backpressure_num_objects=_BUFFERED,
        )
        prepare = plan.prepare.model_copy(
            update={"files": {shard.source: plan.prepare.files[shard.source]}, "details": {}}
        )
        size = chunk_rows(plan.decoding.image_size, plan.batch_size)
        with cluster.unwrapped_errors():
            for chunk in task.remote(plan.root, prepare, shard, plan.decoding, size):
                yield ray.get(chunk)

    def _encode(
        self, pixels_NHWC: npt.NDArray[np.uint8], precision: str, dtype: str = "float16"
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
        """Means and log-variances (N, D, h, w) of images.

        Every forward pass has `batch_size` images, filled up with black ones: with another number last bits may differ.
        """
        import torch

        from models.metrics import from_uint8

        tokenizer, _, device = self._networks.result()
        size, moments = self.plan.batch_size, list[Any]()
        for start in range(0, len(pixels_NHWC), size):
            images = _tensor(_filled(pixels_NHWC[start : start + size], size)).to(device).permute(0, 3, 1, 2)
            with self._computing(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                posterior = tokenizer.encode(from_uint8(images))
                moments.append(torch.stack(posterior).to(getattr(torch, dtype)).cpu())
        mean, logvar = torch.cat(moments, dim=1).numpy()[:, : len(pixels_NHWC)]
        return mean, logvar

    def _psnr(self, mean_NDhw: npt.NDArray[np.floating], pixels_NHWC: npt.NDArray[np.uint8]) -> float:
        """Mean PSNR in dB of at most CANARIES decoded means against their images."""

        from models.metrics import psnr_B, to_uint8

        tokenizer, _, device = self._networks.result()
        count = len(mean_NDhw)
        with self._computing():
            decoded = tokenizer.decode(_tensor(_filled(mean_NDhw, CANARIES)).float().to(device))[:count]
            images = _tensor(pixels_NHWC).to(device).permute(0, 3, 1, 2)
            return float(psnr_B(to_uint8(decoded), images).mean())

    def _sums(self, mean: npt.NDArray[np.floating], logvar: npt.NDArray[np.floating]) -> list[Any]:

        from models.spectral import level_sums

        _, matrices, device = self._networks.result()
        with self._computing():
            sums: list[Any] = level_sums(matrices, _tensor(mean).to(device), _tensor(logvar).to(device)).tolist()
        return sums

    def _checks(
        self, shard: Shard, rows: _Rows, mean: npt.NDArray[np.floating], logvar: npt.NDArray[np.floating]
    ) -> dict[str, float]:
        """What the gate measures. Refused if the shard does not pass."""
        where = f"encode: latents of shard {shard.index} ({shard.source})"
        if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
            raise Refused(f"{where} are not finite")
        if not len(mean):
            return {}
        pixels = np.stack([image for _, _, image in rows.reference])
        chosen = np.array([row for _, row, _ in rows.reference])
        reference = Reference(chosen, *self._encode(pixels, "fp32", "float32"))
        canary, own = (self._psnr(means[:CANARIES], pixels[:CANARIES]) for means in (mean[chosen], reference.mean_RDhw))
        checks = measure(mean, logvar, reference, canary, own, self.plan.precision)
        if wrong := fault(checks, self.plan.precision, self.plan.canary_margin):
            raise Refused(f"{where}: {wrong}")
        return checks.model_dump()

    def _write(
        self, shard: Shard, rows: _Rows, mean: npt.NDArray[np.floating], logvar: npt.NDArray[np.floating]
    ) -> None:
        """Write the shard, with its record in it, then the record for the driver. LeaseError if another driver has
        taken over.
        """
        plan, storage = self.plan, open_storage(self.plan.root)
        checks, sums = self._checks(shard, rows, mean, logvar), self._sums(mean, logvar)
        writer = ArtifactWriter(storage, "encode", plan.fingerprint)
        name = f"latents/{shard.index:05d}.parquet"
        record = {
            "path": name,
            "rows": len(rows.keys),
            "inputs": plan.inputs,
            "sums": sums,
            "checks": checks,
            "quarantined": rows.unreadable,
        }
        with TemporaryDirectory(prefix="dvae-encode-") as folder:
            path = Path(folder, "shard.parquet")
            write_latent_shard(path, rows.keys, np.concatenate(rows.labels), mean, logvar, json.dumps(record))
            check_lease(storage, f"{plan.work}/lease.json", plan.lease)
            writer.add(path, name)
        record |= writer.files[name].model_dump()
        storage.write(record_path(plan.work, shard.index), json.dumps(record).encode())


def _filled(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Zeros are added up to `size` rows."""
    if len(array) >= size:
        return array
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])


def _tensor(array: npt.NDArray[Any]) -> Any:
    """A tensor of the same memory, which nobody writes to: the object store's is read-only."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that writing to it would be undefined
        return torch.from_numpy(array)


def _keep_large_buffers() -> None:
    """Let glibc keep large buffers in the process. Else each is new to it, and the page faults take a quarter of the
    time of a forward pass on a CPU.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for setting in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            library.mallopt(setting, _LARGE_BUFFER)


def _dumped(error: Exception) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:  # some hold what cannot be sent
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
