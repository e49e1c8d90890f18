"""Run the pipeline on a Ray cluster: submit jobs, retrain, create a cluster for one job, diagnose an installation.

Exit codes: those of the job; else 1 if a check of `doctor` failed, 2 for an invalid config or option, 3 if the gate
rejected the candidate of `retrain`, 69 server unavailable, 73 a conflicting job is running, 75 the job's driver or
head died and no attempt is left, 76 incompatible server (TLS, another service, Ray too old, no KubeRay), 77 token
missing or wrong or permission denied, 130 interrupted or stopped.
"""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from deploy.errors import Detached
from deploy.jobs import Dashboard, token
from deploy.rayjob import Delete, JobOptions
from deploy.submit import Work, check_runs, check_version, remote_config, run_work, stage_work, submit
from pipeline.cli import (
    AtOnce,
    Debug,
    Expect,
    Preset,
    ResultsFile,
    Root,
    Rows,
    Scale,
    Seeds,
    Sets,
    SuiteName,
    To,
    Wait,
    make_suite,
    open_suite,
    run_app,
)
from pipeline.config import load_config, site_root
from pipeline.errors import ConfigError, PipelineError
from pipeline.storage import open_storage
from pipeline.workflow import stages_until

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
submit_app = typer.Typer(no_args_is_help=True, help="Run a stage, all, or a suite on a Ray cluster.")
app.add_typer(submit_app, name="submit")
rayjob_app = typer.Typer(no_args_is_help=True, help="Run a stage, or all, on a temporary cluster: a RayJob.")
app.add_typer(rayjob_app, name="rayjob")

Address = Annotated[
    str,
    typer.Option(
        "--address", envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"], help="The dashboard: http(s)://HOST[:PORT]."
    ),
]
Attempts = Annotated[
    int, typer.Option("--attempts", min=1, help="How many times to submit the job if its driver or head dies.")
]
Until = Annotated[str | None, typer.Option("--until", help="The last stage to run.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Kubernetes namespace; the context's by default.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Release = Annotated[str | None, typer.Option("--release", help="Release of the chart, if the namespace has several.")]
Template = Annotated[
    Path | None,
    typer.Option("--template", help="The chart's rendered templates/rayjob.yaml; read from the cluster by default."),
]
Queue = Annotated[str | None, typer.Option("--queue", help="Kueue LocalQueue; the chart's by default.")]
DeletePolicy = Annotated[Delete, typer.Option("--delete", help="When to delete the RayJob: on success, always, never.")]
Render = Annotated[bool, typer.Option("--render", help="Print the RayJob and do not create it.")]

console, table = Console(stderr=True), Console()


@submit_app.command("stage")
def submit_stage(
    name: str,
    preset: Preset,
    address: Address,
    attempts: Attempts = 1,
    set_: Sets = None,
    root: Root = None,
    debug: Debug = False,  # noqa: ARG001  # read by run_app
) -> None:
    """Run one stage on the cluster; its inputs are found by fingerprint."""
    _submit(stage_work(name, preset, set_, root), address, attempts)


@submit_app.command("run")
def submit_run(
    preset: Preset,
    address: Address,
    attempts: Attempts = 1,
    set_: Sets = None,
    root: Root = None,
    until: Until = None,
    expect: Expect = None,
    wait: Wait = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Run every stage whose artifact does not exist yet on the cluster."""
    _submit(run_work(preset, until, set_, root, expect, wait), address, attempts)


@submit_app.command("suite")
def submit_suite(
    name: SuiteName,
    address: Address,
    attempts: Attempts = 1,
    scale: Scale = None,
    seeds: Seeds = None,
    rows: Rows = None,
    at_once: AtOnce = 1,
    results: ResultsFile = None,
    to: To = None,
    set_: Sets = None,
    root: Root = None,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Make what a suite is missing, one job a run, follow them to their ends, and write the report.

    Interrupted, jobs keep running, and the same command attaches to them.
    """
    from pipeline.suites import Way

    opened = open_suite(name, scale, seeds, rows, results, set_, root, fresh=False)
    check_runs((run.config, run.preset) for run in opened.runs)
    check_version(Dashboard(address, token()))
    options = ("--address", address, "--attempts", str(attempts))
    way = Way(root, ("deploy", "submit"), options, shown=False)
    make_suite(opened, way, at_once, to, ["python", "-m", "deploy", "submit", "suite", name, "--address", address])


@rayjob_app.command("stage")
def rayjob_stage(
    name: str,
    preset: Preset,
    attempts: Attempts = 1,
    set_: Sets = None,
    root: Root = None,
    namespace: Namespace = None,
    context: Context = None,
    release: Release = None,
    template: Template = None,
    queue: Queue = None,
    delete: DeletePolicy = "success",
    render: Render = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Run one stage on the cluster; its inputs are found by fingerprint."""
    work, cluster = stage_work(name, preset, set_, root), remote_config(preset, set_, root).cluster
    options = JobOptions(attempts, queue, (name,), cluster)
    _rayjob(work, options, Place(namespace, context, release, template), delete, render)


@rayjob_app.command("run")
def rayjob_run(
    preset: Preset,
    attempts: Attempts = 1,
    set_: Sets = None,
    root: Root = None,
    until: Until = None,
    namespace: Namespace = None,
    context: Context = None,
    release: Release = None,
    template: Template = None,
    queue: Queue = None,
    delete: DeletePolicy = "success",
    render: Render = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Run every stage whose artifact does not exist yet on the cluster."""
    work, cluster = run_work(preset, until, set_, root), remote_config(preset, set_, root).cluster
    options = JobOptions(attempts, queue, tuple(stage.name for stage in stages_until(until)), cluster)
    _rayjob(work, options, Place(namespace, context, release, template), delete, render)


@app.command()
def retrain(
    preset: Preset,
    address: Address,
    attempts: Attempts = 1,
    set_: Sets = None,
    root: Root = None,
    warm: Annotated[
        bool, typer.Option("--from-champion", help="Start from the champion's weights; keep its tokenizer.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of SiT from the champion; sit.steps by default.")
    ] = None,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """List the data source, run the stages that are new or interrupted, and print a Markdown summary. For CI."""
    from deploy import retrain as retraining

    if steps is not None and not warm:
        raise ConfigError("--steps are those of a training from the champion", "Give --from-champion too.")
    start = retraining.Warm(steps) if warm else None
    try:
        done = retraining.retrain(Dashboard(address, token()), preset, set_, root, attempts, _say, _echo_stderr, start)
    except PipelineError as error:
        text = f"## Retraining `{preset}` was not possible\n\n{error}\n"
        _echo(text)
        retraining.publish(text, _say)
        raise
    except Detached as left:
        _report_detached(left, address, f"ray job stop {left.job} --address {address}")
    text = retraining.summary(done)
    _echo(text)
    retraining.publish(text, _say)
    raise SystemExit(done.exit_code)


@app.command()
def doctor(
    address: Annotated[str | None, typer.Option("--address", envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])] = None,
    set_: Sets = None,
    root: Root = None,
    namespace: Namespace = None,
    context: Context = None,
    release: Release = None,
    nodes_on_demand: Annotated[
        bool, typer.Option("--nodes-on-demand", help="Nodes are added when pods request them.")
    ] = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Check what a run needs: S3, MLflow, Ray, KubeRay, Secrets, nodes. Exit code 1 if a check failed."""
    from deploy.doctor import checks
    from deploy.findings import run_checks
    from deploy.kube import Kube

    kube: Kube | PipelineError
    try:
        kube = Kube(namespace, context)
    except PipelineError as error:
        kube = error
    config = load_config("quickstart", set_, root)
    red = 0
    for finding in run_checks(checks(kube, release, config, address, nodes_on_demand)):
        colour, word = {True: ("green", "ok"), False: ("red", "no"), None: ("dim", "-")}[finding.good]
        line = f"{finding.text.rstrip('.')}. {finding.hint}" if finding.hint else finding.text
        table.print(f"[{colour}]{word:<3}[/] {finding.what:<24} {escape(line)}", highlight=False, soft_wrap=True)
        red += finding.good is False
    raise SystemExit(1 if red else 0)


@app.command()
def drain(
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Time until the pod is killed.")],
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """A worker's preStop hook: drain this Ray node, wait until it is idle, upload its logs."""
    end = time.time() + seconds  # before the import of Ray, which is slow
    from deploy.drain import drain as drain_node

    try:
        drain_node(end, _say)
    finally:
        _keep_logs()


@app.command("keep-logs")
def keep_logs(debug: Debug = False) -> None:  # noqa: ARG001
    """The head's preStop hook: upload Ray's logs to the site's root, below .logs/."""
    _keep_logs()


@app.command("mlflow-users")
def mlflow_users(debug: Debug = False) -> None:  # noqa: ARG001
    """MLflow's init container: make its users, and give them the passwords in the environment."""
    from deploy.mlflow_users import make_users

    _say(f"MLflow knows {' and '.join(make_users(os.environ))}")


def _keep_logs() -> None:
    from deploy.logs import keep_logs as keep

    _say(f"logs uploaded to {keep(open_storage(site_root()))}")


def _submit(work: Work, address: str, attempts: int) -> None:
    dashboard = Dashboard(address, token())
    try:
        code = submit(dashboard, work, attempts, _say, _echo)
    except Detached as left:
        _report_detached(left, dashboard.address, f"ray job stop {left.job} --address {dashboard.address}")
    raise SystemExit(code)


def _report_detached(left: Detached, where: str, end: str) -> NoReturn:
    _say(f"detached: {left.job} keeps running at {where}. Run the same command to attach again; `{end}` stops it.")
    raise SystemExit(130)


class Place(NamedTuple):
    """Where a RayJob is created, and the template that it is rendered from."""

    namespace: str | None
    context: str | None
    release: str | None
    template: Path | None


def _rayjob(work: Work, options: JobOptions, place: Place, delete: Delete, render: bool) -> None:
    from deploy import rayjob
    from deploy.kube import Kube

    rendered = rayjob.read_template(place.template) if place.template else None
    if render and rendered:
        _echo(yaml.safe_dump(rayjob.render(rendered, work, options, 1), sort_keys=False))
        return
    kube = Kube(place.namespace, place.context)
    template = rendered or rayjob.find_template(kube, place.release)
    if render:
        _echo(yaml.safe_dump(rayjob.render(template, work, options, 1), sort_keys=False))
        return
    try:
        code = rayjob.run(kube, template, work, options, delete, _say, _echo)
    except Detached as left:
        _report_detached(
            left, f"{kube.address} in {kube.namespace}", f"kubectl -n {kube.namespace} delete rayjob {left.job}"
        )
    raise SystemExit(code)


def _say(text: str) -> None:
    console.print(text, style="dim", highlight=False, soft_wrap=True, markup=False)


def _echo(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _echo_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def main() -> None:
    """`python -m deploy`."""
    run_app(app)


if __name__ == "__main__":
    main()
