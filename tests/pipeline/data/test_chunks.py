"""Chunks of a span: every row of it once, whatever the row groups, and no row of another."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.chunks import Decoding, chunk_rows, decoded_chunks
from pipeline.data.decode import decode_image, transform
from pipeline.data.shards import ImageShardWriter, StoredExample
from tests.support import sources

ROWS = 40
DECODING = Decoding(8, True, 10_000)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images in row groups of 7; row 11 is cut."""
    path = tmp_path_factory.mktemp("chunks") / "shard.parquet"
    with pytest.MonkeyPatch.context() as patch, ImageShardWriter(path) as writer:
        patch.setattr("pipeline.data.shards._GROUP_ROWS", 7)
        for row in range(ROWS):
            image = sources.encoded(sources.picture(row, 20, 16))
            writer.add(StoredExample(f"key{row}", row % 3, image[:-60] if row == 11 else image, 20, 16))
    return path


@settings(max_examples=30)
@given(start=st.integers(0, ROWS - 1), rows=st.integers(1, ROWS), size=st.integers(1, ROWS))
def test_chunks_hold_the_rows_of_their_span(stored: Path, start: int, rows: int, size: int) -> None:
    rows = min(rows, ROWS - start)
    chunks = list(decoded_chunks(stored, start, rows, size, DECODING))
    assert [len(chunk.pixels) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert [chunk.start for chunk in chunks] == list(range(0, rows, size))
    keys = [key for chunk in chunks for key in chunk.keys]
    assert keys == [f"key{row}" for row in range(start, start + rows)]
    assert np.concatenate([chunk.labels for chunk in chunks]).tolist() == [
        row % 3 for row in range(start, start + rows)
    ]
    unreadable = [key for chunk in chunks for key, good in zip(chunk.keys, chunk.readable, strict=True) if not good]
    assert unreadable == (["key11"] if start <= 11 < start + rows else [])
    assert [entry["key"] for chunk in chunks for entry in chunk.unreadable] == unreadable


def test_pixels_are_those_of_the_decoder(stored: Path) -> None:
    (chunk,) = decoded_chunks(stored, 9, 5, 10, DECODING)
    for i, row in enumerate(range(9, 14)):
        image = transform(decode_image(sources.encoded(sources.picture(row, 20, 16)), None), 8, True)
        assert np.array_equal(chunk.pixels[i], np.zeros_like(image) if row == 11 else image)
    assert "damaged" in chunk.unreadable[0]["reason"]


@pytest.mark.parametrize(("side", "batch", "rows"), [(32, 16, 512), (256, 16, 32), (256, 128, 128), (1024, 1, 2)])
def test_chunks_are_whole_forward_passes(side: int, batch: int, rows: int) -> None:
    assert chunk_rows(side, batch) == rows
