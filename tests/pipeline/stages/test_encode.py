"""encode: what its shards hold, how it resumes and repairs, and what the gate refuses. Ray is in test_encode_ray.py."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.metrics import from_uint8
from pipeline.artifacts import Manifest
from pipeline.data import Chunk, choose_rows, read_images
from pipeline.errors import DataError, LeaseError, PipelineError
from pipeline.inference import load_tokenizer
from pipeline.stages import encode
from pipeline.stages.encode_shard import Shard
from tests.support.contexts import LocalContext, committed
from tests.support.encoding import LocalEncoder, LocalStream, encode_config, encode_context
from tests.support.trainers import job_of, put_lease

Moments = tuple[list[str], np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> LocalContext:
    """Only read by tests; those that write take `afresh`."""
    root = tmp_path_factory.mktemp("encode")
    return encode_context(encode_config(root / "root"), root / "scratch")


@pytest.fixture
def afresh(tmp_path: Path) -> LocalContext:
    return encode_context(encode_config(tmp_path / "root", "data.validation_share=0.7"), tmp_path / "scratch")


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> LocalStream:
    made = LocalStream()
    monkeypatch.setattr(encode, "_encode", made)
    return made


def with_encoder(monkeypatch: pytest.MonkeyPatch, encoder: type[LocalEncoder]) -> LocalStream:
    made = LocalStream(encoder)
    monkeypatch.setattr(encode, "_encode", made)
    return made


def run(context: LocalContext) -> Manifest:
    return committed(context, encode.run(context))


def stored(context: LocalContext, manifest: Manifest) -> Moments:
    """Keys, labels, means and log-variances of all shards."""
    shape = (-1, *manifest.details["latent_shape"])
    tables = [
        pq.read_table(io.BytesIO(context.storage.read(f"{manifest.name}/{shard['path']}")))
        for shard in manifest.details["shards"]
    ]
    moments = [
        np.concatenate([table[name].combine_chunks().values.to_numpy().reshape(shape) for table in tables])
        for name in ("mean", "logvar")
    ]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    return keys, np.concatenate([table["label"].to_numpy() for table in tables]), moments[0], moments[1]


def shards(context: LocalContext) -> dict[str, str]:
    return {name: record.sha256 for name, record in context.writer.files.items()}


def test_latents_are_those_of_the_images_in_order(context: LocalContext, stream: LocalStream) -> None:
    manifest = run(context)
    keys, labels, mean, logvar = stored(context, manifest)
    prepare = context.inputs["prepare"]
    parts = [
        read_images(context.storage, prepare, unit, context.config.data)
        for unit in choose_rows(prepare, "train", 10**6)
    ]
    images, expected = (np.concatenate(one) for one in zip(*parts, strict=True))
    assert len(keys) == len(set(keys)) == len(images)
    assert np.array_equal(labels, expected)
    tokenizer, latent_filter = load_tokenizer(context.storage, context.inputs["train-tokenizer"], torch.device("cpu"))
    with torch.inference_mode():
        posterior = tokenizer.encode(from_uint8(torch.from_numpy(images)))
    assert np.allclose(mean, posterior.mean_BDhw, atol=2e-3)
    assert np.allclose(logvar, posterior.logvar_BDhw, atol=4e-3)
    for level in range(4):
        z = latent_filter(torch.from_numpy(mean).double(), level).transpose(0, 1).flatten(1)
        noise = torch.from_numpy(np.exp(logvar.astype(np.float64))).flatten(2)
        noise = (noise @ latent_filter.matrices[level].double().square().T).transpose(0, 1).flatten(1)
        statistics = manifest.details["statistics"][str(level)]
        assert statistics["mean"] == pytest.approx(z.mean(1).tolist(), abs=1e-6)
        variance = z.square().mean(1) + noise.mean(1) - z.mean(1).square()
        assert statistics["std"] == pytest.approx(variance.sqrt().tolist(), rel=1e-6)


def test_an_image_has_the_same_bits_wherever_it_lies(tmp_path: Path, stream: LocalStream) -> None:
    """Other shards, and so other neighbours in a forward pass, whose size stays."""
    found = []
    for rows in (200, 77):
        config = encode_config(tmp_path / "root", f"encode.shard_rows={rows}", "data.validation_share=0.8")
        context = encode_context(config, tmp_path / "scratch")
        found.append(stored(context, run(context)))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_a_second_attempt_encodes_what_is_missing(afresh: LocalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(LocalEncoder):
        def _make(self, shard: Shard) -> None:
            if shard.index == 2:
                raise PipelineError("broken")
            super()._make(shard)

    with_encoder(monkeypatch, Fails)
    with pytest.raises(PipelineError, match="broken"):
        encode.run(afresh)
    second = with_encoder(monkeypatch, LocalEncoder)
    encode.run(afresh)
    assert second.made == [2]


def test_records_of_other_inputs_are_not_used(afresh: LocalContext, stream: LocalStream) -> None:
    encode.run(afresh)
    (path, *_) = [entry.path for entry in afresh.storage.list(f"{afresh.work}/shards")]
    record = json.loads(afresh.storage.read(path))
    afresh.storage.write(path, json.dumps({**record, "inputs": "others"}).encode())
    stream.made.clear()
    encode.run(afresh)
    assert stream.made == [0]


def test_shards_of_encoders_that_died_are_encoded_again(afresh: LocalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data leaves them out of the stream."""
    local = LocalStream()

    def loses(context: Any, plan: Any, missing: list[Shard]) -> Iterator[tuple[int, Exception | None]]:
        yield from local(context, plan, missing[: len(missing) // 2])

    monkeypatch.setattr(encode, "_encode", loses)
    with pytest.raises(PipelineError, match=r"1 shards could not be written, since encoders died in every attempt"):
        encode.run(afresh)
    assert local.made == [0, 1]


def test_repair_encodes_only_what_is_broken(afresh: LocalContext, stream: LocalStream) -> None:
    manifest = run(afresh)
    before = shards(afresh)
    afresh.storage.delete_folder(afresh.work)
    put_lease(job_of(afresh.config, "encode", afresh.inputs))
    assert list(manifest.files) == [f"latents/0000{number}.parquet" for number in range(len(before))], "nothing to lose"
    broken = ["latents/00001.parquet"]
    encode.salvage(afresh.storage, manifest, broken, afresh.work)
    afresh.storage.delete(f"{manifest.name}/{broken[0]}")
    afresh.writer.files.clear()
    stream.made.clear()
    assert run(afresh).content == manifest.content
    assert stream.made == [1]
    assert shards(afresh) == before


def test_a_driver_that_lost_its_lease_writes_no_shard(afresh: LocalContext, stream: LocalStream) -> None:
    """It may have slept while another one finished the stage, on other hardware."""
    put_lease(job_of(afresh.config, "encode", afresh.inputs), nonce="another")
    with pytest.raises(LeaseError, match="taken over"):
        encode.run(afresh)
    assert not list(afresh.storage.list(f"encode/{afresh.fingerprint[:12]}"))


def damaged(kind: str, times: int) -> type[LocalEncoder]:
    """An encoder whose device fails in the first so many shards, in one way."""
    left = [times]

    class Flaky(LocalEncoder):
        def _encode(self, pixels: np.ndarray, precision: str, dtype: str = "float16") -> Any:
            mean, logvar = (moments.copy() for moments in super()._encode(pixels, precision, dtype))
            if dtype == "float16" and left[0] > 0:  # not the gate's own
                left[0] -= 1
                if kind == "not finite":
                    mean[3, 0, 0, 0] = np.nan
                elif kind == "means":
                    mean *= np.float16(1.5)
                elif kind == "order":
                    mean = mean[::-1].copy()
                elif kind == "log-variances":
                    logvar += np.float16(1.0)
            return mean, logvar

    return Flaky


@pytest.mark.parametrize("kind", ["not finite", "means", "order", "log-variances"])
def test_a_shard_that_fails_once_is_encoded_again_and_then_refused(
    context: LocalContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fresh = encode_context(encode_config(tmp_path / "root", "data.validation_share=0.8"), tmp_path / "scratch")
    once = with_encoder(monkeypatch, damaged(kind, 1))
    encode.run(fresh)
    assert once.made == [0, 1, 0], "each shard is judged by itself"
    good = shards(fresh)
    fresh.storage.delete_folder(fresh.work)
    fresh.writer.files.clear()
    put_lease(job_of(fresh.config, "encode", fresh.inputs))
    with_encoder(monkeypatch, damaged(kind, 100))
    with pytest.raises(DataError, match=rf"latents of shard 0 .*{kind if kind != 'order' else 'means'}.*twice"):
        encode.run(fresh)
    assert good


def test_latents_that_decode_badly_are_refused(afresh: LocalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    class Worse(LocalEncoder):
        def _psnr(self, mean: np.ndarray, pixels: np.ndarray) -> float:
            return super()._psnr(mean, pixels) - (1.2 if mean.dtype == np.float16 else 0.0)

    with_encoder(monkeypatch, Worse)
    with pytest.raises(DataError, match=r"the PSNR of decoded latents is .* dB, of the tokenizer itself"):
        encode.run(afresh)


@pytest.mark.parametrize("which", ["pixels", "cut"])
def test_images_that_can_no_longer_be_read_are_counted(
    tmp_path: Path, stream: LocalStream, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = encode_config(tmp_path / "root", "data.validation_share=0.8", "data.quarantine_budget=0.5")
    context = encode_context(config, tmp_path / "scratch")
    plain = LocalEncoder._chunks

    def loses(self: LocalEncoder, shard: Shard) -> Iterator[Chunk]:
        for chunk in plain(self, shard):
            chunk.readable[5] = False
            chunk.unreadable.append({"key": chunk.keys[5], "reason": which})
            yield chunk

    monkeypatch.setattr(LocalEncoder, "_chunks", loses)
    manifest = run(context)
    keys, *_ = stored(context, manifest)
    assert len(manifest.details["quarantined"]) == 2
    assert not {entry["key"] for entry in manifest.details["quarantined"]} & set(keys)
    tight = context.config.data.model_copy(update={"quarantine_budget": 0.0})
    context.config = context.config.model_copy(update={"data": tight})
    with pytest.raises(DataError, match=r"2 images can no longer be read"):
        encode.run(context)
