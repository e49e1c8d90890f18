"""The table and figure of several trainings: what they say of curves whose answers are known."""

import json
from typing import Any

import pytest
from rich.console import Console

from pipeline.errors import ContractError, StorageError
from pipeline.evaluation import Curve, Point
from pipeline.reports import check_comparable, render_convergence, write_convergence
from pipeline.reports.convergence import convergence_rows, markdown
from pipeline.reports.trainings import Training

ABOUT: dict[str, Any] = {
    "distance": "frechet_distance/efficientnet_lite0",
    "images": 500,
    "sampling": {"method": "heun", "steps": 13, "guidance": 1.0},
    "data": "abc",
    "reference": "1,438 images of the training split",
    "batch_size": 50,
    "training_images": 1000,
    "device_seconds_per_step": 9.0,
}


def training(name: str, distances: list[float], **changes: object) -> Training:
    points = tuple(
        Point(100 * number, distance, (distance - 1, distance, distance + 1))
        for number, distance in enumerate(distances, start=1)
    )
    return Training(name, Curve(points), {**ABOUT, **changes})


RAW, FDA = training("raw", [100, 80, 60, 40]), training("fda", [80, 40, 30, 20])


def test_steps_epochs_and_hours_to_the_common_distance():
    goal, rows = convergence_rows([RAW, FDA], None)
    assert goal == pytest.approx(40.95), "reached by nearly all resamples"
    goal, rows = convergence_rows([RAW, FDA], 40)
    assert goal == 40
    assert [row["steps"] for row in rows] == [400, 200]
    assert [row["images"] for row in rows] == [20_000, 10_000]
    assert [row["epochs"] for row in rows] == [20, 10]
    assert [row["device_hours"] for row in rows] == [1.0, 0.5]
    assert "times_as_fast" not in rows[0]
    assert rows[1]["times_as_fast"]["value"] == 2


def test_what_is_not_reached_is_a_bound():
    table = markdown([RAW, FDA], 30)
    assert "| raw | ≥ 400 |" in table
    assert "| fda | 300 |" in table
    assert "≥ 1.33 (no interval: " in table
    assert "| fda | ≤ 100 | 5 | 0.25 | ≥ 2.00 (" in markdown([RAW, FDA], 80) or "| fda | 100 |" in markdown(
        [RAW, FDA], 80
    )


def test_the_screen_says_the_same():
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render_convergence(console, [RAW, FDA], 60)
    shown = console.export_text()
    assert "to a Frechet distance by efficientnet_lite0 of 60" in shown
    assert "2.00" in shown


def test_what_cannot_be_compared_is_refused():
    guided = {**ABOUT["sampling"], "guidance": 1.8}
    for changes, said in (
        ({"images": 100}, "images 100, and raw 500.*convergence.images"),
        ({"distance": "frechet_distance/inception"}, "distance frechet_distance/inception, and raw frechet"),
        ({"sampling": guided}, r"sampling guidance 1\.8, and raw guidance 1\.0\. .*same sample"),
        ({"data": "abd"}, "data abd, and raw abc"),
        ({"reference": "of others"}, "reference of others, and raw 1,438 .*evaluate.reference_split"),
    ):
        with pytest.raises(ContractError, match=f"raw2 has {said}"):
            check_comparable([RAW, training("raw2", [1, 2], **changes)])
    check_comparable([RAW, FDA])


def test_the_files(tmp_path):
    paths = write_convergence(tmp_path / "figure3", [RAW, FDA], None)
    assert [path.name for path in paths] == ["figure3.png", "figure3.svg", "convergence.md", "convergence.json"]
    content = json.loads(paths[3].read_text())
    assert content["goal"] == pytest.approx(40.95)
    assert [point["distance"] for point in content["trainings"][1]["points"]] == [80, 40, 30, 20]
    svg = paths[1].read_text()
    assert "Distance of samples over training (Figure 3)" in svg
    assert ">raw<" in svg.replace("\n", "")
    before = [path.read_bytes() for path in paths]
    write_convergence(tmp_path / "figure3", [RAW, FDA], None)
    assert [path.read_bytes() for path in paths] == before


def test_a_folder_that_is_none_is_said_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_convergence(tmp_path / "file", [RAW, FDA], None)
