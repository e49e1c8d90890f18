"""Unusual and unreadable images, and labels out of range, by the command line: converted, quarantined, or refused."""

import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.sources import huge_png
from tests.support.whole_runs import attempt, one_line, sets

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def odd_images(folder: Path) -> None:
    """Six unusual images and six plain ones that can be read, and four that cannot."""
    good, bad = folder / "cat", folder / "dog"
    good.mkdir(parents=True)
    bad.mkdir()
    Image.new("L", (40, 30), 100).save(good / "grey.png")
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(good / "cmyk.jpg", quality=95)
    palette = Image.new("P", (40, 30), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(good / "palette.png")
    Image.fromarray(np.tile(np.linspace(0, 65535, 256, dtype=np.uint16), (30, 1))).save(good / "deep.png")
    turned = Image.new("RGB", (48, 32), (0, 0, 255))
    turned.paste((255, 0, 0), (0, 0, 48, 16))  # red above blue
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    turned.save(good / "turned.jpg", exif=exif, quality=95)
    for i in range(7):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(bad / f"plain{i}.png")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "JPEG")
    (bad / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (bad / "huge.png").write_bytes(huge_png(30_000, 30_000))
    (bad / "text.jpg").write_text("this is no picture")
    (bad / "zero.png").write_bytes(b"")


def check_pixels(stored: dict[str, Image.Image]) -> None:
    assert {image.mode for image in stored.values()} == {"RGB"}
    assert stored["cat/grey.png"].getpixel((5, 5)) == (100, 100, 100)
    assert stored["cat/palette.png"].getpixel((5, 5)) == (10, 200, 30)
    red, green, blue = np.asarray(stored["cat/cmyk.jpg"], int)[5, 5]
    assert red > 240
    assert max(green, blue) < 15
    deep = np.asarray(stored["cat/deep.png"])
    assert deep[0, :, 0].tolist() == list(range(256)), "16 bits are scaled, not clipped"
    turned = stored["cat/turned.jpg"]
    assert turned.size == (32, 48)
    left, right = np.asarray(turned, int)[24, 4], np.asarray(turned, int)[24, 28]
    assert right[0] > 200 > left[0]
    assert left[2] > 200 > right[2]


class TestOddImages:
    @pytest.fixture(scope="class")
    def source(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("source") / "images"
        odd_images(folder)
        return folder

    def prepare(self, source: Path, root: Path, *more: str) -> subprocess.CompletedProcess[str]:
        given = ["data.format=folder", f"data.uri={source.as_uri()}", "data.validation_share=0.4", *more]
        return attempt("run", root, *sets(*given), "--until", "prepare")

    def test_they_are_converted_or_left_out(self, source: Path, tmp_path: Path) -> None:
        import pyarrow.parquet as pq

        from pipeline.data.decode import decode_image

        done = self.prepare(source, tmp_path / "runs", "data.quarantine_budget=0.5")
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = (tmp_path / "runs" / "prepare").glob("*/manifest.json")
        manifest = json.loads(path.read_text())
        rows = [row for shard in path.parent.rglob("*.parquet") for row in pq.read_table(shard).to_pylist()]
        assert manifest["rows"] == len(rows) == 12
        reasons = {entry["key"]: entry["reason"] for entry in manifest["details"]["quarantined"]}
        assert reasons.keys() == {"dog/cut.jpg", "dog/huge.png", "dog/text.jpg", "dog/zero.png"}
        assert reasons["dog/zero.png"] == "zero bytes"
        assert "30000 x 30000 pixels" in reasons["dog/huge.png"]
        assert "not an image" in reasons["dog/text.jpg"]
        assert "damaged" in reasons["dog/cut.jpg"]
        assert manifest["metrics"]["data/quarantined"] == 4
        check_pixels({row["key"]: decode_image(row["image"], None) for row in rows})

    def test_too_many_of_them_end_the_run(self, source: Path, tmp_path: Path) -> None:
        done = self.prepare(source, tmp_path / "runs", "data.quarantine_budget=0.1")
        assert done.returncode == 1
        one_line(done.stderr, "4 of 16 images cannot be read", "dog/cut.jpg", "data.quarantine_budget")
        assert not list(tmp_path.glob("runs/prepare/*/manifest.json"))


def test_label_out_of_range(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    images = [{"bytes": picture.getvalue(), "path": None}] * 20
    pq.write_table(pa.table({"image": images, "label": [*range(10), *range(9), 12]}), tmp_path / "a.parquet")
    given = ("data.format=parquet", f"data.uri={tmp_path}/a.parquet", "data.classes=10")
    done = attempt("run", tmp_path / "runs", *sets(*given), "--until", "prepare")
    assert done.returncode == 1, done.stdout + done.stderr
    one_line(done.stderr, "a.parquet#19", "label 12 is out of range", "data.classes")
    assert not list(tmp_path.glob("runs/prepare/*/manifest.json"))
