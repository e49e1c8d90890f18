"""A suite's file: what is refused, in one line with the nearest name; and those that come with the code."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from models.sizes import tokenizer_sizes
from pipeline.config import PRESETS, load_config
from pipeline.errors import ConfigError
from pipeline.suites import Asked, load_suite, runs_of, suite_names
from pipeline.suites.measures import measured_keys, recorded_key
from pipeline.suites.runs import preset_of
from pipeline.suites.schema import Suite
from pipeline.workflow import sit_sizes
from tests.pipeline.suites.user import TREE, written
from tests.support import PROJECT
from tests.support.command_lines import parsed
from tests.support.paper_rows import header

SUITES = {name: load_suite(name) for name in suite_names()}
PLACES = [(name, scale) for name, suite in SUITES.items() for scale in suite.scale_names]


def refused(folder: Path, **changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_suite(written(folder, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


ROW = {"name": "none", "preset": "quickstart"}


@pytest.mark.parametrize(
    ("changes", "problem", "hint"),
    [
        ({"rows": [{**ROW, "preset": "quickstrat"}]}, "row none: unknown preset 'quickstrat'", "mean 'quickstart'?"),
        ({"columns": [{"name": "FD", "metric": "samples/sfdi"}], "order": []}, "unknown metric", "'samples/sfid'?"),
        ({"order": [{"column": "FD", "rows": ["fda", "nine"]}]}, "order: unknown row 'nine'", "Did you mean 'none'?"),
        ({"order": [{"column": "FDD", "rows": ["fda", "none"]}]}, "unknown column 'FDD'", "Did you mean 'FD'?"),
        ({"rows": [{**ROW, "prnted": {}}], "order": []}, "rows.0.prnted: unknown key", "Did you mean 'printed'?"),
        ({"tittle": "x"}, "tittle: unknown key", "Did you mean 'title'?"),
        ({"rows": [ROW, ROW], "order": []}, "rows: 'none' stands twice", "Correct the file."),
        ({"rows": [{**ROW, "at": {"digits": {}}}], "order": []}, "unknown scale 'digits'", "There is none."),
        ({"rows": [{**ROW, "printed": {"FDX": 1}}], "order": []}, "row none: printed: unknown column 'FDX'", "'FD'?"),
        ({"until": "evaluate-everything"}, "unknown stage 'evaluate-everything'", "prepare"),
        ({"title": None}, "title: ", "Correct the file."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(tmp_path, changes, problem, hint):
    line = refused(tmp_path, **changes)
    assert problem in line
    assert hint in line


def test_a_suite_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown suite 'tabel5'. Did you mean 'table5'\? A file of your own ends"):
        load_suite("tabel5")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_suite(str(tmp_path / "mysweep.yaml"))


def test_a_users_suite_has_the_name_of_its_file(tmp_path):
    suite = load_suite(written(tmp_path))
    assert (suite.name, suite.scale_names, len(suite.rows)) == ("mysweep", [""], len(TREE["rows"]))  # type: ignore[arg-type]


# --- those that come with the code ---


def test_every_table_and_figure_of_the_paper_is_a_suite():
    assert suite_names() == [f"figure{i}" for i in range(1, 6)] + [f"table{i}" for i in range(1, 7)]


@pytest.mark.parametrize(("name", "scale"), PLACES)
def test_rows_resolve_at_every_scale_and_share_tokenizers(name, scale, tmp_path):
    """What is to be equal is; a tokenizer is trained once a seed."""
    source = [] if scale == "digits" else ["data.uri=s3://bucket/images"]
    runs = runs_of(SUITES[name], Asked(scale, 2, (), source, str(tmp_path)), fresh=False)
    assert runs
    trainings = {run.identities["train-tokenizer"] for run in runs}
    networks = {(run.seed, run.config.tokenizer.model_copy(update={"seed": None}).model_dump_json()) for run in runs}
    imported = {run.config.tokenizer.imported for run in runs} - {None}
    assert len(trainings) == len(networks) - len(imported)


MEASURED = {**SUITES, **{path.stem: load_suite(str(path)) for path in (PROJECT / "benchmarks").glob("claims*.yaml")}}


@pytest.mark.parametrize(("name", "scale"), [(name, scale) for name, own in MEASURED.items() for scale in own.scales])
def test_every_run_measures_every_column(name, scale, tmp_path):
    """Under the very key that the table reads: a network's name and a level are part of it."""
    suite = MEASURED[name]
    source = [] if scale == "digits" else ["data.uri=s3://bucket/images"]
    for run in runs_of(suite, Asked(scale, 1, (), source, str(tmp_path)), fresh=False):
        measured = measured_keys(run.config, suite.until)
        for column in suite.columns:
            key = recorded_key(column, scale, run.config)
            if key is not None and key.startswith(("samples/", "floor/", "reconstruction/")):
                assert key in measured, (run.label, column.name)


@pytest.mark.parametrize("name", [name for name in SUITES if name.startswith("table")])
def test_printed_values_are_those_of_the_presets(name):
    """A row's preset of the paper's scale says the same numbers in its header."""
    for row in SUITES[name].rows:
        preset = preset_of(SUITES[name], row, "imagenet")
        if preset is None or not preset.startswith("table"):
            continue
        said = header(preset)
        for column, printed in (("rFID", said.rfid), ("gFID", said.gfid)):
            if column in row.printed:
                assert float(row.printed[column]) in [float(one) for one in printed.split(", ")], (row.name, column)


@pytest.mark.parametrize("name", SUITES)
def test_claimed_orders_are_those_of_the_printed_values(name):
    suite = SUITES[name]
    rows = {row.name: row for row in suite.rows}
    better = {column.name: column.better_is for column in suite.columns}
    for claim in suite.order:
        values = [float(rows[row].printed[claim.column]) for row in claim.rows if claim.column in rows[row].printed]
        for first, second in pairwise(values):
            assert first < second if better[claim.column] == "lower" else first > second, claim


COMMANDS = [(name, row.name, line) for name, suite in SUITES.items() for row in suite.rows for line in row.commands]


@pytest.mark.parametrize(("name", "row", "line"), COMMANDS)
def test_commands_are_those_of_the_command_line(name, row, line):
    """As it reads them; the preset resolves with their overrides, with values for what is the user's."""
    python, module, *words = shlex.split(line)
    assert (python, module) == ("python", "-m")
    given = parsed([word.replace("FINGERPRINT", "0" * 64).replace("URI", "s3://bucket/images") for word in words])
    if given.info_name == "run":
        assert load_config(given.params["preset"], given.params["set_"])


@pytest.mark.parametrize(("name", "row"), dict.fromkeys((name, row) for name, row, _ in COMMANDS))
def test_a_row_without_a_preset_is_measured_by_its_last_command(name, row):
    """What is fetched and imported alone says nothing of it."""
    (own,) = [one for one in SUITES[name].rows if one.name == row]
    if own.preset is None:
        assert "pipeline run " in own.commands[-1]
        assert "imported=FINGERPRINT" in own.commands[-1]


def test_a_floor_is_the_floor():
    """Of reconstructions against the reference of the samples, and not against their own originals."""
    columns = [(name, column) for name, suite in MEASURED.items() for column in suite.columns]
    floors = [(name, column) for name, column in columns if "floor" in column.name]
    assert floors
    for name, column in floors:
        keys = column.metric.values() if isinstance(column.metric, dict) else [column.metric]
        assert all((key or "").startswith("floor/") for key in keys), (name, column.name)


def test_the_small_scales_are_small():
    """Table 5 on digits: the quickstart's networks and steps, which the budget in its header is of."""
    for run in runs_of(SUITES["table5"], Asked("digits", 3), fresh=False):
        own, quickstart = run.config, load_config("quickstart")
        assert (own.sit.steps, own.sample.count, own.tokenizer.steps) == (
            quickstart.sit.steps, quickstart.sample.count, quickstart.tokenizer.steps
        )  # fmt: skip


@pytest.mark.parametrize("scale", SUITES["figure3"].scales)
def test_figure_3_says_how_many_samples_a_milestone_has(scale):
    source = [] if scale == "digits" else ["data.uri=s3://bucket/images"]
    (images,) = {
        run.config.convergence.images for run in runs_of(SUITES["figure3"], Asked(scale, 1, (), source), False)
    }
    assert f"milestones of {images:,} samples" in SUITES["figure3"].scales[scale].about


def test_a_preset_says_how_large_its_networks_are():
    name = "figure3/cifar10-raw"
    tokenizer, sit = re.findall(r"has ([\d.]+)M", (PRESETS / f"{name}.yaml").read_text())
    own = load_config(name)
    assert float(tokenizer) == round(tokenizer_sizes("vit", own.tokenizer_network).parameters / 1e6, 2)
    assert float(sit) == round(sit_sizes(own)["parameters"] / 1e6, 2)


def test_a_suite_is_frozen_and_typed():
    assert all(isinstance(suite, Suite) for suite in SUITES.values())
