"""What a suite would run, what its runs share, and what that costs. Nothing is started."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.console import duration
from pipeline.suites.results import Measured, hours_text
from pipeline.suites.runs import Run
from pipeline.suites.schema import Row
from pipeline.workflow import SECTIONS, Node, make_plan, section_of, stages_until, survey


class Surveyed(NamedTuple):
    """A run, whether it is recorded, and where its stages stand."""

    run: Run
    recorded: bool
    nodes: dict[str, Node]

    @property
    def status(self) -> str:
        """`recorded`, `cached`, `resumable`, `new` or `unresolved`."""
        if self.recorded:
            return "recorded"
        statuses = {node.status for node in self.nodes.values()}
        if statuses == {"cached"}:
            return "cached"
        if "unresolved" in statuses:
            return "unresolved"
        return "resumable" if statuses & {"cached", "resumable"} else "new"


def surveyed(found: Sequence[Measured]) -> list[Surveyed]:
    """Where every run stands."""
    return [Surveyed(one.run, one.record is not None, nodes_of(one.run)) for one in found]


def nodes_of(run: Run) -> dict[str, Node]:
    """Its stages at its root."""
    return {node.stage.name: node for node in survey(run.config, stages_until(run.until))}


def make_suite_plan(found: Sequence[Surveyed]) -> dict[str, Any]:
    """As JSON: the runs with their status; by stage how many artifacts are needed, by how many runs, how many are
    missing, and device-hours of all and of those that are missing; their sums, and the price of the rest.
    """
    needed: dict[str, Counter[str]] = {}
    hours: dict[str, float] = {}
    left: dict[str, float] = {}
    missing: set[str] = set()
    for one in found:
        planned = make_plan(one.run.config, [*one.nodes.values()])
        costs = {stage["name"]: stage for stage in planned["stages"]}
        for stage, identity in one.run.identities.items():
            needed.setdefault(stage, Counter())[identity] += 1
            hours[identity] = costs[stage]["device_hours"]
            left[identity] = costs[stage]["device_hours_left"]
            if not one.recorded and one.nodes[stage].status != "cached":
                missing.add(identity)
    stages = {
        stage: {
            "artifacts": len(uses),
            "runs": sum(uses.values()),
            "missing": len(uses.keys() & missing),
            "device_hours": sum(hours[identity] for identity in uses),
            "device_hours_missing": sum(left[identity] for identity in uses.keys() & missing),
        }
        for stage, uses in needed.items()
    }
    to_do = sum(stage["device_hours_missing"] for stage in stages.values())
    prices = {one.run.config.cluster.price_per_hour for one in found} - {None}
    price = prices.pop() if len(prices) == 1 else None
    return {
        "runs": [{"row": one.run.row.name, "seed": one.run.seed, "status": one.status} for one in found],
        "stages": stages,
        "trainings": len(_trainings(found) & missing),
        "device_hours": sum(stage["device_hours"] for stage in stages.values()),
        "device_hours_missing": to_do,
        "price": to_do * price if price is not None else None,
    }


def _trainings(found: Sequence[Surveyed]) -> set[str]:
    """What tells the trainings; an imported network is none."""
    return {
        one.run.identities[stage]
        for one in found
        for stage in SECTIONS
        if stage in one.run.identities and section_of(one.run.config, stage).imported is None
    }


def print_suite_plan(console: Console, rows: Sequence[Row], plan: dict[str, Any]) -> None:
    """Print it. `rows`: all that were asked for, of which some may not be run at this scale."""
    runs = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("row", "seed", "status"):
        runs.add_column(heading)
    for run in plan["runs"]:
        runs.add_row(escape(run["row"]), str(run["seed"]), run["status"])
    planned = {run["row"] for run in plan["runs"]}
    for row in [row for row in rows if row.name not in planned]:
        runs.add_row(escape(row.name), "", row.standing)
    console.print(runs)
    console.print()
    stages = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "artifacts", "shared by runs", "missing", "device time missing"):
        stages.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, stage in plan["stages"].items():
        left = stage["device_hours_missing"]
        stages.add_row(
            name,
            str(stage["artifacts"]),
            str(stage["runs"]),
            str(stage["missing"]),
            duration(left * 3600) if left else "",
        )
    console.print(stages)
    for row in rows:
        for command in row.commands:
            console.print(f"{row.name}: {command}", highlight=False, soft_wrap=True, markup=False)
    console.print(_sums(plan), highlight=False, soft_wrap=True)


def _sums(plan: dict[str, Any]) -> str:
    left, whole = plan["device_hours_missing"], plan["device_hours"]
    price = plan["price"]
    cost = f", {price:,.2f} at cluster.price_per_hour" if price is not None else ""
    return (
        f"{len(plan['runs'])} runs, {plan['trainings']} trainings to do; {hours_text(left)} of {hours_text(whole)} "
        f"device-hours{cost}"
    )
