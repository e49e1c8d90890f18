"""The report of a suite: what stands in the table, in Markdown and on the page, and the page in a real browser."""

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipeline import suites
from pipeline.artifacts import Manifest
from pipeline.reports.losses import LossCurve, draw_losses
from pipeline.storage import open_storage
from pipeline.suites import Asked, Run, Suite, figures, load_suite, measured, render_suite, report, runs_of
from pipeline.suites.results import Measured
from pipeline.workflow import Node, find_stage
from tests.pipeline.suites.user import record, written
from tests.support import PROJECT

World = tuple[Suite, Asked, list[Measured]]
BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def drawn() -> bytes:
    """A picture, Figure 4 of some curves."""
    steps = list(range(10, 400, 10))
    curves = [
        LossCurve(name, group, steps, [1 / step**power for step in steps])
        for name, group, power in (("raw", "d 4", 0.3), ("denoised", "d 4", 0.4), ("raw, d 16", "d 16", 0.2))
    ]
    return draw_losses(curves)["figure4.png"]


def with_samples(png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a grid of samples for each run at the root."""

    def nodes(run: Run) -> dict[str, Node]:
        identity = run.identities["sample"]
        manifest = Manifest.model_validate(
            {
                "stage": "sample",
                "fingerprint": identity,
                "inputs": {},
                "input_contents": {},
                "config": {},
                "files": {"grid.png": {"bytes": len(png), "sha256": hashlib.sha256(png).hexdigest()}},
                "rows": 1,
                "metrics": {},
                "details": {},
                "seconds": 1.0,
                "git_sha": None,
                "image_digest": None,
                "created": "2026",
            }
        )
        open_storage(run.config.root).write(f"{manifest.name}/grid.png", png)
        return {"sample": Node(find_stage("sample"), identity, "cached", None, manifest)}

    monkeypatch.setattr(figures, "nodes_of", nodes)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two rows with two seeds each, of which one run is missing, and a printed row."""
    suite = load_suite(written(tmp_path))
    asked = Asked("", 2, (), (), str(tmp_path / "runs"))
    runs = runs_of(suite, asked, fresh=True)
    values = {("none", 0): 20.0, ("none", 1): 22.0, ("fda", 0): 21.0}
    records = {
        run.fingerprint: record(run, FD=values[run.row.name, run.seed], floor=10.0)
        for run in runs
        if (run.row.name, run.seed) in values and run.fingerprint
    }
    return suite, asked, measured(runs, records)


def write(world: World, label: str, to: Path | None) -> list[str]:
    suite, asked, found = world
    return suites.write_suite(suite, asked, found, label, to)


def page_of(world: World, folder: Path) -> str:
    write(world, "mysweep", folder)
    return (folder / "index.html").read_text()


def test_markdown_says_everything(world, tmp_path):
    write(world, "mysweep", tmp_path / "to")
    text = (tmp_path / "to" / "table.md").read_text()
    assert "| row | FD ↓ | paper | floor ↓ | status |" in text
    assert "| none (baseline) | 21.00 ± 12.71 | 17.65 | 10.00 ± 0.00 | run |" in text
    assert "| fda | 21.00 | 14.34 | 10.00 | 1 of 2 seeds |" in text
    assert "| theirs |  | 9.0 |  | printed only |" in text
    said = "cannot be told; fda before none by 0.00, in 1 of 2; of all pairs of seeds 50% agree."
    assert f"* FD: fda before none (Section 1): {said}\n" in text
    assert "* An order is reproduced, or is not, where neighbours differ by more than the 95% interval" in text
    assert "95% t-interval over seeds" in text
    assert "theirs: from <their> paper" in text


FD = "samples/frechet_distance/efficientnet_lite0"


@pytest.fixture
def one_seed(world: World) -> World:
    """The first seed alone, with intervals over images, and what the stages said of how they measured."""
    suite, asked, found = world
    kept = []
    for run, own in found:
        if run.seed == 0 and own is not None:
            value = own.metrics[FD]
            notes = ["the reference of the distances is 90 images.", f"{run.row.name} is biased."]
            told = {"evaluate-samples": notes, "evaluate-tokenizer": ["PSNR of 9 images."], "analyze": ["no column."]}
            kept.append(
                Measured(run, own.model_copy(update={"intervals": {FD: (value - 3, value + 5)}, "notes": told}))
            )
    return suite, dataclasses.replace(asked, seeds=1), kept


OVER_IMAGES = "of one seed ± 95% interval over the images of its run, which holds no other seeds"


def test_one_seed_has_the_interval_over_its_images(one_seed, tmp_path):
    """Half of 8; the floor's is not known. The caption says of what it is."""
    page = page_of(one_seed, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| none (baseline) | 20.00 ± 4.00 | 17.65 | 10.00 | run |" in text
    assert f"Ours: {OVER_IMAGES}." in text
    assert "mean ± 95% t-interval" not in text
    assert "20.00 ± 4.00" in page
    assert OVER_IMAGES in page


def test_an_order_that_images_cannot_tell_is_not_said_to_be_reproduced(one_seed, tmp_path):
    """20 before 21, in the suite's order turned around, each within 4."""
    suite, asked, found = one_seed
    claim = suite.order[0].model_copy(update={"rows": ("none", "fda")})
    page = page_of((suite.model_copy(update={"order": (claim,)}), asked, found), tmp_path)
    text = (tmp_path / "table.md").read_text()
    said = "cannot be told; none before fda by 1.00 ± 5.66, in 1 of 1; of all pairs of seeds 100% agree."
    assert f"none before fda (Section 1): {said}" in text
    assert "cannot be told</span>" in page
    assert "none before fda by 1.00 ± 5.66, in 1 of 1" in page


def test_several_seeds_have_an_interval_over_seeds_alone(world, tmp_path):
    write(world, "mysweep", tmp_path)
    assert "over the images" not in (tmp_path / "table.md").read_text()


def test_references_and_notes_are_below_the_table(one_seed, tmp_path):
    """Each once; of a row alone behind its name; none of a stage that measured no column."""
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render_suite(console, *one_seed)
    page = page_of(one_seed, tmp_path)
    for text in (console.export_text(), page, (tmp_path / "table.md").read_text()):
        assert text.count("evaluate-samples: the reference of the distances is 90 images.") == 1
        assert "fda: evaluate-samples: fda is biased." in text
        assert text.count("evaluate-tokenizer: PSNR of 9 images.") == 1
        assert "no column." not in text
        assert OVER_IMAGES in text


def test_without_a_folder_it_lies_at_the_root(world, tmp_path):
    places = write(world, "mysweep-digits", None)
    assert places[0].endswith("runs/suites/mysweep-digits/index.html")
    assert (tmp_path / "runs" / "suites" / "mysweep-digits" / "table.md").exists()


def test_the_screen_says_the_same(world):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render_suite(console, *world)
    shown = console.export_text()
    assert re.search(r"none \(baseline\) +21.00 ± 12.71 +17.65 +10.00 ± 0.00 +run", shown)
    assert "cannot be told" in shown


def test_a_screen_that_is_too_narrow_for_the_table_has_a_row_as_a_line(world):
    console = Console(width=40, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render_suite(console, *world)
    lines = console.export_text().splitlines()
    assert "none (baseline): FD ↓ 21.00 ± 12.71, paper 17.65, floor ↓ 10.00 ± 0.00, run" in lines
    assert "theirs: paper 9.0, printed only" in lines


def test_the_page_needs_nothing_else(world, tmp_path):
    page = page_of(world, tmp_path)
    assert "none-key" in page
    assert "from &lt;their&gt; paper" in page
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', page)


def test_runs_link_to_a_server_of_mlflow(world, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    monkeypatch.setattr(report, "runs_page", lambda uri, experiment, key: f"{uri}/#/experiments/1?key={key}&x")
    assert '<a href="http://mlflow.example:5000/#/experiments/1?key=none-key&amp;x">none-key</a>' in page_of(
        world, tmp_path
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian's package chromium)")
def test_a_browser_shows_the_page(world, drawn, tmp_path, monkeypatch):
    """Its table and its pictures, without an error on the console and without a request to a network."""
    with_samples(drawn, monkeypatch)
    page_of(world, tmp_path)
    log = tmp_path / "net.json"
    assert CHROMIUM is not None
    probe = (
        (tmp_path / "index.html")
        .read_text()
        .replace(
            "</body>",
            "<script>addEventListener('load', () => {document.title = JSON.stringify("
            "[...document.images].map(one => [one.complete, one.naturalWidth]))})</script></body>",
        )
    )
    (tmp_path / "probe.html").write_text(probe)
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--virtual-time-budget=2000",
         "--dump-dom", (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "<table>" in done.stdout
    assert "21.00 ± 12.71" in done.stdout
    assert "cannot be told" in done.stdout
    images = json.loads(re.findall(r"<title>(.*?)</title>", done.stdout)[0])
    assert len(images) == 2  # a grid of each row
    assert all(complete and width > 100 for complete, width in images)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    asked = set(re.findall(r'"url":"((?:https?|file)[^"]*)"', log.read_text()))
    assert {url for url in asked if not url.startswith("file:")} - browsers_own(asked) == set()


def browsers_own(urls: set[str]) -> set[str]:
    """What a browser asks by itself, for its own updates."""
    own = ("google.com", "googleapis.com", "gvt1.com", "gstatic.com")
    return {url for url in urls if any(re.match(rf"https?://[\w.-]*{host}[:/]", url) for host in own)}


def test_figure_4_is_drawn_in_both_forms():
    files = draw_losses([LossCurve("raw $1", "d 4", [1, 2, 3], [3.0, 2.0, 1.0])])
    assert files["figure4.png"].startswith(b"\x89PNG")
    assert b"raw $1" in files["figure4.svg"]


# --- the command line ---


def called(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "suite", *words], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_readmes_example_is_planned(tmp_path):
    """As it is written there; a plan starts nothing."""
    (example,) = re.findall(r"```yaml\n(# mysweep.yaml: .*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "mysweep.yaml"
    path.write_text(example)
    assert yaml.safe_load(example)["rows"]
    words = (str(path), "--seeds", "2", "--root", str(tmp_path / "runs"))
    said = called("plan", *words, "--set", "cluster.price_per_hour=3").stdout
    assert "6 runs, 8 trainings to do" in said
    assert "at cluster.price_per_hour" in said
    assert json.loads(called("plan", *words, "--json").stdout)["stages"]["train-tokenizer"]["artifacts"] == 2
    called("report", *words, "--to", str(tmp_path / "to"))
    assert "| without (baseline) |" in (tmp_path / "to" / "table.md").read_text()
    assert not (tmp_path / "runs" / "prepare").exists()


def test_the_list_names_every_suite():
    said = called("list").stdout
    assert "table5" in said
    assert "(digits, cifar10, imagenet)" in said


def test_a_wrong_name_is_one_line():
    (line,) = called("plan", "tabel5", code=2).stderr.splitlines()
    assert line == "error: unknown suite 'tabel5'. Did you mean 'table5'? A file of your own ends in .yaml."
