"""The report: what a CI job reads, what a person reads, and that neither needs the heavy packages."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config.schema import Config
from pipeline.errors import ContractError
from pipeline.reports import figures, report
from pipeline.storage.uri import open_storage
from pipeline.workflow import Node, survey
from tests.support import PROJECT
from tests.support.artifacts import prepared, put
from tests.support.contexts import committed, local_context, untrained_tokenizer
from tests.support.stages import PLAIN
from tests.support.trainers import small_config

VOID = {"meta", "img", "br", "!doctype"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A root with a few artifacts; the rest of the stages are not made."""
    config = small_config(tmp_path)
    prepare = put(config, prepared(config))
    tokenizer = untrained_tokenizer(config, prepare, tmp_path / "scratch")
    context = local_context(
        config, "evaluate-tokenizer", {"prepare": prepare, "train-tokenizer": tokenizer}, tmp_path / "scratch"
    )
    context.writer.add_bytes(_picture(), "reconstructions.png")
    metrics = {"reconstruction/psnr": 30.7123, "reconstruction/psnr_level1": 29.4, "reconstruction/psnr_level3": 19.25}
    metrics["reconstruction/frechet_distance/efficientnet_lite0"] = 1.25
    committed(context, context.writer.outcome(60, metrics, reference="<b>themselves</b>"), seconds=75.0)
    return config


def _picture() -> bytes:
    import numpy as np

    return figures.sample_grid(np.zeros((2, 3, 8, 8), np.uint8), np.array([0, 1]))


def nodes(config: Config) -> list[Node]:
    return survey(config)


class Markup(HTMLParser):
    """Checks that tags close in order, and keeps the text and what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page(config: Config) -> Markup:
    markup = Markup()
    html = report.render_html(config, nodes(config), open_storage(config.root), "some/where/my <preset>.yaml")
    assert "@import" not in html
    assert "url(" not in html
    markup.feed(html)
    assert markup.open == []
    return markup


def test_json_has_stages_and_metrics(config):
    collected = json.loads(json.dumps(report.collect(config, nodes(config), open_storage(config.root))))
    assert list(collected["stages"]) == PLAIN
    assert collected["stages"]["evaluate-tokenizer"] == {"status": "cached", "seconds": 75.0}
    assert collected["stages"]["sample"] == {"status": "new", "seconds": 0.0}
    assert collected["metrics"]["reconstruction/psnr"] == 30.7123


def test_the_page_is_whole_and_refers_to_nothing_outside(config):
    markup = page(config)
    assert [source[:22] for source in markup.sources] == ["data:image/png;base64,"]
    words = " ".join(markup.words)
    for expected in ("my <preset>", "30.71 dB", "1 min 15 s", "not run", "<b>themselves</b>", "tokenizer.width"):
        assert expected in words
    assert re.search(r"3 of 11 stages", words)


def test_levels_stand_side_by_side(config):
    html = report.render_html(config, nodes(config), open_storage(config.root), "quickstart")
    (row,) = re.findall(r"<tr><td><code>reconstruction/psnr</code>.*?</tr>", html)
    assert re.findall(r'class="number">(.*?)<', row) == ["30.71 dB", "29.4 dB", "", "19.25 dB"]


def test_an_empty_root_has_a_page(tmp_path):
    config = small_config(tmp_path)
    words = " ".join(page(config).words)
    assert "Stages" in words
    assert "Figures" not in words
    unresolved = config.model_copy(update={"data": config.data.model_copy(update={"revision": None})})
    assert "no source" in " ".join(page(unresolved).words)


def test_a_lost_picture_is_named(config):
    storage = open_storage(config.root)
    (lost,) = [entry.path for entry in storage.list("evaluate-tokenizer") if entry.path.endswith(".png")]
    storage.delete(lost)
    with pytest.raises(ContractError, match="artifact repair evaluate-tokenizer/"):
        report.render_html(config, nodes(config), storage, "quickstart")


def test_classes_have_their_names(config):
    storage = open_storage(config.root)
    plain = report.collect(config, nodes(config), storage)
    assert plain["class_names"] == []
    (manifest,) = [node.manifest for node in nodes(config) if node.stage.name == "prepare"]
    assert manifest is not None
    put(config, manifest.model_copy(update={"details": {**manifest.details, "class_names": ["ant", "[bee]"]}}))
    collected = report.collect(config, nodes(config), storage)
    assert collected["class_names"] == ["ant", "[bee]"]
    page_text = io.StringIO()
    report.render_table(Console(file=page_text, width=120), collected)
    assert "classes: 0 ant, 1 [bee]" in page_text.getvalue()
    assert "classes: ant, [bee]" in report.render_html(config, nodes(config), storage, "quickstart")


def test_the_table_names_stages_and_numbers(config):
    page = io.StringIO()
    report.render_table(Console(file=page, width=120), report.collect(config, nodes(config), open_storage(config.root)))
    text = page.getvalue()
    assert re.search(r"evaluate-tokenizer +done +1 min 15 s", text)
    assert re.search(r"reconstruction/psnr_level3 +19.25 dB", text)
    assert re.search(r"total +1 min 15 s", text)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("samples/class_accuracy", 0.976, "97.6 %"),
        ("data/rows", 1281167.0, "1,281,167 images"),
        ("samples/frechet_distance/inception", 11.5789, "11.58"),
        ("latent/high_frequency_share_level2", 0.0312, "3.12 %"),
        ("tokenizer/loss", 0.01234567, "0.01235"),
    ],
)
def test_numbers_are_said_with_their_unit(name, value, text):
    assert report.value_text(name, value) == text


def test_reporting_needs_no_heavy_package(config):
    code = (
        "import sys\nfrom pipeline.config import load_config\nfrom pipeline.reports import report\n"
        "from pipeline.workflow import survey\n"
        "from pipeline.storage import open_storage\n"
        f"config = load_config('quickstart', [], {config.root!r})\n"
        "nodes = survey(config)\n"
        "report.render_html(config, nodes, open_storage(config.root), 'quickstart')\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'matplotlib', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
