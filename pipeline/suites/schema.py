"""The schema of a suite: rows, columns, the paper's printed values, and what it claims of them. Nothing runs here.

A suite is a YAML file: one of this folder by its name, or one of a user by its path. Unknown keys are refused.
"""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.config import parse_yaml, preset_names
from pipeline.errors import ConfigError
from pipeline.metrics import METRICS, find_metric
from pipeline.workflow import find_stage

FOLDER = Path(__file__).parent
_ENDINGS = (".yaml", ".yml")

Scalar = str | int | float | bool | None
Value = Scalar | list[Scalar]  # a YAML list; JSON in `--set`
Fields = dict[str, Value]
"""Overrides of a config by dotted name, as `--set` takes them."""
Drawing = Literal["panels", "convergence", "losses", "samples", "grids", "reconstructions"]


class Part(BaseModel):
    """A part of a suite: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Scale(Part):
    """A size at which a suite can be run."""

    about: str = Field("", description="What it is and costs, in a line.")
    set: Fields = Field({}, description="Overrides of every row.")
    classes: tuple[int, ...] = Field((), description="Classes of the picture `samples`; none: the first ten.")


class Row(Part):
    """A line of the table: a preset with overrides, or printed values alone."""

    name: str = Field(min_length=1, description="Its name for --rows and in claims.")
    title: str = Field("", description="As the paper prints it. Empty: the name.")
    group: str = Field("", description="Heading above it; rows of one group follow each other.")
    baseline: bool = Field(False, description="Whether others are compared with it.")
    preset: str | dict[str, str] | None = Field(
        None,
        description="A preset's name or a YAML file, relative to the suite's; or one for each scale, and at a scale "
        "without one the row is not run. None: the row is printed only.",
    )
    set: Fields = Field({}, description="Overrides at every scale.")
    at: dict[str, Fields] = Field({}, description="More overrides, by scale.")
    commands: tuple[str, ...] = Field(
        (), description="Commands for public weights: before the row is run, or, without a preset, in its place."
    )
    printed: dict[str, float | str] = Field({}, description="The paper's values, by column.")
    note: str = Field("", description="What a reader has to know of the row.")

    @property
    def standing(self) -> str:
        """What there is of it at a scale at which nothing of ours is to be run."""
        if self.preset is not None:
            return "not at this scale"
        return "by command" if self.commands else "printed only"


class Column(Part):
    """A number of each row."""

    name: str = Field(min_length=1)
    metric: str | dict[str, str] | None = Field(
        None, description="A metric's key, or one for each scale; None: printed values alone."
    )
    at_level: bool = Field(False, description="The metric at the level of the row's generator, `sit.level`.")
    titles: dict[str, str] = Field({}, description="Its heading at scales where another metric stands for it.")
    better: Literal["higher", "lower", ""] | None = Field(None, description="None: as the metric.")
    unit: float = Field(1.0, gt=0, description="Ours is divided by it, to stand beside the paper's.")
    digits: int = Field(2, ge=0, le=6, description="Digits after the point.")

    def key(self, scale: str) -> str | None:
        """The metric's key at a scale, without a level."""
        return self.metric.get(scale) if isinstance(self.metric, dict) else self.metric

    def title(self, scale: str) -> str:
        """Its heading at a scale."""
        return self.titles.get(scale, self.name)

    @property
    def better_is(self) -> str:
        """`higher`, `lower`, or empty if neither is."""
        if self.better is not None:
            return self.better
        found = [metric for key in _keys(self.metric) if (metric := find_metric(key)) is not None]
        return found[0].better if found else ""


class Claim(Part):
    """An order of rows that the paper claims."""

    column: str
    rows: Annotated[tuple[str, ...], Field(min_length=2)] = Field(description="The best one first.")
    place: str = Field("", description="Where the paper says so.")


class Suite(Part):
    """A table or figure as a set of runs."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="For files; by default that of the YAML file.")
    title: str
    about: str = Field("", description="What it shows, and what the paper leaves open.")
    place: str = Field("the paper", description="Where the printed values stand, such as Table 5.")
    scales: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], Scale] = Field(
        {}, description="By name; the first is the default. None: the rows as they are."
    )
    until: str = Field("evaluate-samples", description="The last stage of each run.")
    seeds: int = Field(1, ge=1, description="Number of seeds, from 0 on, unless --seeds says another.")
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    columns: tuple[Column, ...] = ()
    order: tuple[Claim, ...] = Field((), description="What the paper claims.")
    equal: tuple[str, ...] = Field((), description="Sections or fields that all rows of a group have in common.")
    pictures: tuple[Drawing, ...] = Field(("grids",), description="Figures of the report.")
    folder: Path = Field(FOLDER, exclude=True, description="Of the file, for presets beside it.")

    @property
    def scale_names(self) -> list[str]:
        return list(self.scales) or [""]

    @model_validator(mode="after")
    def _fits(self) -> "Suite":
        rows, columns = [row.name for row in self.rows], [column.name for column in self.columns]
        for what, names in (("rows", rows), ("columns", columns)):
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{what}: '{twice}' stands twice")
        for row in self.rows:
            _check_named(f"row {row.name}: printed", row.printed, columns, "column")
            scales = [*row.at, *(row.preset if isinstance(row.preset, dict) else ())]
            _check_named(f"row {row.name}", scales, list(self.scales), "scale")
            for preset in _keys(row.preset):
                if not preset.endswith(_ENDINGS):
                    _check_named(f"row {row.name}", [preset], preset_names(), "preset")
        for column in self.columns:
            named = [*_scales(column.metric), *column.titles]
            _check_named(f"column {column.name}", named, list(self.scales), "scale")
            for key in _keys(column.metric):
                _check_metric(column.name, key)
        for claim in self.order:
            _check_named("order", [claim.column], columns, "column")
            _check_named("order", claim.rows, rows, "row")
            if not next(column for column in self.columns if column.name == claim.column).better_is:
                raise ValueError(f"order: of column '{claim.column}' it is not said whether higher or lower is better")
        return self


def _keys(given: str | dict[str, str] | None) -> list[str]:
    """The values of something that is given once, or by scale."""
    if isinstance(given, dict):
        return list(given.values())
    return [given] if given is not None else []


def _scales(given: str | dict[str, str] | None) -> list[str]:
    return list(given) if isinstance(given, dict) else []


def _check_metric(column: str, key: str) -> None:
    if find_metric(key) is None:
        known = [metric.key for metric in METRICS]
        raise ValueError(f"column {column}: unknown metric '{key}'; {nearest(key, known)}")


def _check_named(where: str, names: Collection[str], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: unknown {what} '{name}'; {nearest(name, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """What to write in the place of an unknown name."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"there is {', '.join(known[:12])}" if known else "there is none"


def suite_names() -> list[str]:
    """The suites that come with this code."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """The suite of this name, or of a YAML file. ConfigError that names key and file."""
    path = Path(name)
    if not name.endswith(_ENDINGS):
        if name not in suite_names():
            raise ConfigError(
                f"unknown suite '{name}'",
                f"{_sentence(nearest(name, suite_names()))} A file of your own ends in .yaml.",
            )
        path = FOLDER / f"{name}.yaml"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the suite {path} cannot be read ({error})", "Correct its path.") from error
    tree: dict[str, Any] = {"name": path.stem, **parse_yaml(text, str(path)), "folder": path.parent}
    try:
        suite = Suite.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(*_explained(error, path)) from None
    find_stage(suite.until)
    return suite


def _explained(error: ValidationError, path: Path) -> tuple[str, str]:
    """Problem and hint for the first error."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        kinds: dict[str, type[Part]] = {"scales": Scale, "rows": Row, "columns": Column, "order": Claim}
        kind = kinds.get(str(first["loc"][0]), Suite) if len(first["loc"]) > 1 else Suite
        return f"{path}: {key}: unknown key", _sentence(nearest(str(first["loc"][-1]), list(kind.model_fields)))
    problem, _, hint = first["msg"].removeprefix("Value error, ").partition("; ")
    return f"{path}: {key + ': ' if key else ''}{problem}", _sentence(hint) if hint else "Correct the file."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith("?") else ".")
