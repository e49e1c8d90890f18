"""config list, show, schema: presets and the config tree."""

import json
import sys

import typer
import yaml

from pipeline.cli.options import Preset, Root, Sets, console
from pipeline.config import Config, load_config, preset_names

app = typer.Typer(no_args_is_help=True, help="Presets and the config tree.")


@app.command("list")
def config_list(set_: Sets = None, root: Root = None) -> None:
    """List the presets with their purpose."""
    from pipeline.config import PRESETS

    width = max(map(len, preset_names()))
    for name in preset_names():
        load_config(name, set_, root)
        first = (PRESETS / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")
        console.print(f"{name:<{width}} {first}", highlight=False, markup=False, soft_wrap=True)


@app.command("show")
def config_show(preset: Preset, set_: Sets = None, root: Root = None) -> None:
    """Print the resolved config of a preset."""
    tree = load_config(preset, set_, root).model_dump(mode="json")
    sys.stdout.write(yaml.safe_dump(tree, sort_keys=False))


@app.command("schema")
def config_schema(set_: Sets = None, root: Root = None) -> None:  # noqa: ARG001
    """Print the JSON schema of the config: every field with type, default and meaning."""
    print(json.dumps(Config.model_json_schema(), indent=1))  # noqa: T201
