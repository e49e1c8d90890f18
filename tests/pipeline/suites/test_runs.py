"""From a suite to its runs: seeds, what is shared, what has to be equal, results by fingerprint."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.console import Display
from pipeline.errors import ConfigError, StorageError
from pipeline.storage import open_storage
from pipeline.suites import (
    Asked,
    AtRoot,
    InFile,
    chosen_rows,
    load_suite,
    make_suite_plan,
    measured,
    runs_of,
    scale_of,
    surveyed,
)
from pipeline.suites.results import total_hours
from pipeline.suites.runs import Run
from tests.pipeline.suites.user import record, written
from tests.support.sources import examples, put_folder


def runs(folder: Path, seeds: int = 2, *sets: str, **changes: object) -> list[Run]:
    suite = load_suite(written(folder, **changes))
    return runs_of(suite, Asked("", seeds, (), sets, str(folder / "runs")), fresh=True)


def test_a_seed_is_of_both_trainings_and_of_the_samples(tmp_path):
    """And not of the images that are held out; seed by seed, so that one table is whole before the next begins."""
    found = runs(tmp_path)
    assert [(run.row.name, run.seed) for run in found] == [("none", 0), ("fda", 0), ("none", 1), ("fda", 1)]
    assert [run.config.seed for run in found] == [0] * 4
    for run in found:
        own = run.config
        assert [own.tokenizer_seed, own.sit_seed, own.sample_seed] == [run.seed] * 3
    assert len({run.prints["prepare"] for run in found}) == 1
    assert len({run.prints["train-tokenizer"] for run in found}) == 2
    assert len({run.fingerprint for run in found}) == 4


def test_a_run_is_a_command_that_anyone_can_repeat(tmp_path):
    run = runs(tmp_path)[1]
    line = run.command_line("/some where")
    assert line.startswith("python -m pipeline run quickstart --until evaluate-samples --set 'sit.alignment=\"fda\"' ")
    assert line.endswith("--set sit.seed=0 --set sample.seed=0 --root '/some where'")


def test_what_is_said_on_the_command_line_goes_before_the_file(tmp_path):
    assert {run.config.sit.steps for run in runs(tmp_path, 1, "sit.steps=7")} == {7}


def test_rows_that_differ_where_they_must_not(tmp_path):
    rows = [{"name": "a", "preset": "quickstart"}, {"name": "b", "preset": "quickstart", "set": {"tokenizer.steps": 9}}]
    with pytest.raises(ConfigError, match=r"rows a and b differ in tokenizer.steps \(500 and 9\)"):
        runs(tmp_path, 1, rows=rows, order=[])


def test_what_is_to_be_equal_is_a_field(tmp_path):
    with pytest.raises(ConfigError, match=r"equal: unknown field 'tokenizr'. As to fields, did you mean 'tokenizer'\?"):
        runs(tmp_path, 1, equal=["tokenizr"])


LITE = "efficientnet_lite0"


@pytest.mark.parametrize(
    ("metric", "at_level", "recorded", "meant"),
    [
        ("samples/frechet_distance", False, "samples/frechet_distance", f"samples/frechet_distance/{LITE}"),
        ("samples/recall", False, "samples/recall", f"samples/recall/{LITE}"),
        ("samples/kid/inception", False, "samples/kid/inception", f"samples/kid/{LITE}"),
        ("samples/kid/" + LITE, True, f"samples/kid/{LITE}_level2", f"samples/kid/{LITE}"),
        ("floor/kid", False, "floor/kid", f"floor/kid/{LITE}"),
        ("reconstruction/frechet_distance", True, "reconstruction/frechet_distance_level2",
         f"reconstruction/frechet_distance/{LITE}"),
    ],
)  # fmt: skip
def test_a_column_that_no_run_measures_is_refused(tmp_path, metric, at_level, recorded, meant):
    """It would be blank after all of the work."""
    column = {"name": "D", "metric": metric, "at_level": at_level}
    with pytest.raises(ConfigError) as caught:
        runs(tmp_path, 1, columns=[{"name": "FD"}, column], order=[])
    assert str(caught.value) == f"suite mysweep: column D: no run measures {recorded}. Did you mean '{meant}'?"


def test_a_column_of_a_stage_after_the_last_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Runs end with evaluate-tokenizer: set `until` to evaluate-samples"):
        runs(tmp_path, 1, until="evaluate-tokenizer")


@pytest.mark.parametrize(
    "metric", ["sit/diffusion", "size/sit_parameters", "latent/uniform_off_dc", "data/rows", "samples/count"]
)
def test_what_else_stages_measure_is_allowed(tmp_path, metric):
    assert runs(tmp_path, 1, columns=[{"name": "FD", "metric": metric}], order=[])


def test_a_column_may_be_of_one_row_alone(tmp_path):
    """And is blank, not refused, where only others are asked for."""
    own = {"name": "own", "preset": "quickstart", "set": {"evaluate.also": ["self"]}}
    changes = {
        "rows": [{"name": "plain", "preset": "quickstart"}, own],
        "columns": [{"name": "FD", "metric": "samples/frechet_distance/self-digits"}],
        "order": [],
        "equal": [],
    }
    assert len(runs(tmp_path, 1, **changes)) == 2
    suite = load_suite(written(tmp_path, **changes))
    assert len(runs_of(suite, Asked("", 1, ("plain",), (), str(tmp_path)), fresh=True)) == 1


def test_an_override_that_is_wrong_names_the_row(tmp_path):
    rows = [{"name": "a", "preset": "quickstart", "set": {"sit.stepz": 9}}]
    with pytest.raises(ConfigError, match=r"row a: sit.stepz: unknown key"):
        runs(tmp_path, 1, rows=rows, order=[])


def test_rows_and_scales_by_name(tmp_path):
    suite = load_suite("table5")
    assert [row.name for row in chosen_rows(suite, Asked(rows=["fda", "denoised"]))] == ["denoised", "fda"]
    with pytest.raises(ConfigError, match=r"suite table5 has no row 'fdaa'. As to its rows, did you mean 'fda'\?"):
        chosen_rows(suite, Asked(rows=["fdaa"]))
    assert (scale_of(suite, None), scale_of(suite, "imagenet")) == ("digits", "imagenet")
    with pytest.raises(ConfigError, match=r"no scale 'imagnet'. Use one of digits, cifar10, imagenet."):
        scale_of(suite, "imagnet")
    with pytest.raises(ConfigError, match="Leave out --scale"):
        scale_of(load_suite(written(tmp_path)), "digits")


def test_a_source_is_listed_once(tmp_path):
    """By all rows and seeds, in one line: a bucket's listing takes minutes."""
    put_folder(open_storage(f"file://{tmp_path}/images"), examples(6))
    source = ("data.format=folder", f"data.uri=file://{tmp_path}/images")
    printed = io.StringIO()
    with Display(Console(file=printed, width=200)) as display:
        asked = Asked("", 2, (), source, str(tmp_path / "runs"))
        found = runs_of(load_suite(written(tmp_path)), asked, fresh=True, display=display)
    assert len(found) == 4
    assert len({run.config.data.revision for run in found} - {None}) == 1
    assert printed.getvalue().count("6 files") == 1


def test_weights_are_asked_for_of_every_row(tmp_path):
    weights = [("a", None), ("b", "vgg16")]
    rows = [{"name": name, "preset": "quickstart", "set": {"evaluate.lpips": lpips}} for name, lpips in weights]
    with pytest.raises(ConfigError, match=r"row b: pretrained weights are missing .* vgg16"):
        runs(tmp_path, 1, rows=rows, order=[])


def test_a_plan_says_what_is_shared_and_what_it_costs(tmp_path):
    found = runs(tmp_path, 3, "cluster.price_per_hour=2")
    plan = make_suite_plan(surveyed(measured(found, {})))
    stages = plan["stages"]
    assert (stages["prepare"]["artifacts"], stages["train-tokenizer"]["artifacts"]) == (1, 3)
    assert (stages["train-sit"]["artifacts"], stages["train-tokenizer"]["runs"]) == (6, 6)
    assert plan["trainings"] == 9
    assert plan["device_hours"] == plan["device_hours_missing"] > 0
    assert plan["price"] == pytest.approx(2 * plan["device_hours"])
    records = {run.fingerprint: record(run) for run in found[:2] if run.fingerprint}
    rest = make_suite_plan(surveyed(measured(found, records)))
    assert [run["status"] for run in rest["runs"]] == ["recorded"] * 2 + ["new"] * 4
    assert rest["trainings"] == 6
    shared = stages["reference"]["device_hours"]  # by all of them, so that two thirds of them need it, too
    assert rest["device_hours_missing"] - shared == pytest.approx((plan["device_hours"] - shared) * 2 / 3)


def test_a_suite_that_ends_early_is_planned_too(tmp_path):
    """Each of its stages costs something, but for what runs on CPUs alone."""
    row = {"name": "fda", "preset": "quickstart"}
    for until in ("analyze", "train-sit", "convergence"):
        found = runs(tmp_path, 1, "sit.milestones=[10,20]", until=until, columns=[], order=[], rows=[row])
        stages = make_suite_plan(surveyed(measured(found, {})))["stages"]
        assert until in stages
        assert [name for name, stage in stages.items() if not stage["device_hours"]] == ["prepare"]


def test_an_imported_tokenizer_is_no_training(tmp_path):
    """Of Table 1's: EQ-VAE's tokenizer is trained, and SD-VAE's public weights are not; both have a generator."""
    asked = Asked("imagenet", 1, ("sd-vae", "eq-vae"), ("data.uri=s3://bucket/images",), str(tmp_path))
    plan = make_suite_plan(surveyed(measured(runs_of(load_suite("table1"), asked, fresh=False), {})))
    assert plan["trainings"] == 3
    assert plan["stages"]["train-tokenizer"]["artifacts"] == 2


def test_without_a_price_there_is_none(tmp_path):
    assert make_suite_plan(surveyed(measured(runs(tmp_path, 1), {})))["price"] is None


# --- results ---


@pytest.fixture(params=["root", "file"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> AtRoot | InFile:
    if request.param == "file":
        return InFile(tmp_path / "kept" / "results.json")
    return AtRoot(open_storage((tmp_path / "runs").as_uri()), "mysweep-digits")


def test_results_are_added_to_what_is_there(results, tmp_path):
    one, other = runs(tmp_path, 1)
    assert results.read() == {}
    assert one.fingerprint is not None
    assert other.fingerprint is not None
    results.add(one.fingerprint, record(one, FD=3.0))
    results.add(other.fingerprint, record(other, FD=2.0))
    found = measured([one, other], results.read())
    key = "samples/frechet_distance/efficientnet_lite0"
    assert [item.record.metrics[key] for item in found if item.record] == [3, 2]
    # Of ten stages each, what both share counts once: prepare to encode, the reference and the floor.
    assert total_hours(found) == pytest.approx((7 + 2 * 3) * 0.1)


def test_a_recorded_run_of_other_settings_is_another_run(results, tmp_path):
    run, _ = runs(tmp_path, 1)
    assert run.fingerprint is not None
    results.add(run.fingerprint, record(run, FD=3.0))
    (changed, _) = runs(tmp_path, 1, "sit.steps=7")
    assert measured([changed], results.read())[0].record is None


def test_a_file_that_holds_no_results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"runs": {"ab": {"row": 3}}}')
    with pytest.raises(ConfigError, match="holds no results of a suite"):
        InFile(path).read()
    with pytest.raises(StorageError, match="Choose another file with --results"):
        InFile(tmp_path).read()
