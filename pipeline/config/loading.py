"""Loads a config from a preset and its parents, the site file, `--set`s and `--root`; later sources take precedence.

The fields are defined in `schema.py`. Every error is a ConfigError that names key and file.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from models.choices import SamplerMethod
from pipeline.config.flat import flattened
from pipeline.config.kinds import OF_IMPORTED
from pipeline.config.schema import Config
from pipeline.config.sent import SENT, SENT_VARIABLE, sent_tree
from pipeline.errors import ConfigError

PRESETS = Path(__file__).parent / "presets"
_ENDINGS = (".yaml", ".yml")  # of files


def preset_names() -> list[str]:
    """The names of the presets; one in a folder has it in its name, as `table1/f16d32-mlsr`."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))


def preset_label(preset: str) -> str:
    """A preset's name for files, jobs and legends: `table1-f16d32-mlsr`; of a YAML file its name without the ending."""
    name = preset.removeprefix(SENT)
    if name.endswith(_ENDINGS):
        return Path(name).stem
    return name.replace("/", "-")


def load_config(preset: str, overrides: list[str] | None = None, root: str | None = None) -> Config:
    """The resolved tree: preset (a name or a YAML file) over its parents, then the site file, `--set`s and `--root`.

    The preset `sent:NAME` is the config that a submitter sent in DVAE_SENT_CONFIG; the name is for messages only.

    Raises ConfigError, which names key and file.
    """
    tree = _load_tree(preset, ())
    site = os.environ.get("DVAE_SITE")
    if site:
        tree = _merge(tree, _read_yaml(Path(site)))
    given = [_parse_override(override) for override in overrides or []]
    for override in given:
        tree = _merge(tree, override)
    if root is not None:
        tree["root"] = root
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(*_explain(error, f"{preset}, with the site file {site}" if site else preset)) from None
    _check_used(config, given)
    _check_read(config, given)
    return config


def site_root() -> str:
    """The root of this site, independent of the preset. ConfigError as `load_config`."""
    return load_config("quickstart").root


def fields_changed_here(config: Config) -> list[str]:
    """The fields in which `config` differs from the one that was sent, except root, cluster and tracking."""
    if SENT_VARIABLE not in os.environ:
        return []
    sent = flattened(Config.model_validate(sent_tree()))
    differing = [name for name, value in flattened(config).items() if value != sent[name]]
    return [name for name in differing if name.partition(".")[0] not in ("root", "cluster", "tracking")]


def _load_tree(preset: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if preset.startswith(SENT):
        return sent_tree()
    path = _preset_path(preset)
    if preset in seen:
        raise ConfigError(f"preset '{preset}' extends itself: {' -> '.join(seen)}", "Remove the cycle of extends.")
    tree = _read_yaml(path)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise ConfigError(
            f"{path}: extends: {parent!r} is not a preset", "Give the name of one preset, or one YAML file."
        )
    if parent.endswith(_ENDINGS):
        parent = str(path.parent / parent)  # relative to the file that names it
    return _merge(_load_tree(parent, (*seen, preset)), tree)


def _preset_path(preset: str) -> Path:
    if preset.endswith(_ENDINGS):
        if not Path(preset).is_file():
            raise ConfigError(f"the preset file {preset} is missing", "Correct its path.")
        return Path(preset)
    names = preset_names()
    if preset not in names:
        close = difflib.get_close_matches(preset, names, n=1)
        raise ConfigError(
            f"unknown preset '{preset}'",
            (f"Did you mean '{close[0]}'? " if close else "")
            + "`python -m pipeline config list` prints the names; a file of your own ends in .yaml.",
        )
    return PRESETS / f"{preset}.yaml"


class _UniqueKeys(yaml.SafeLoader):
    """A SafeLoader that rejects duplicate keys instead of taking the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"duplicate key '{key}'", problem_mark=node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return parse_yaml(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})", "Check the path and its permissions.") from error


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A mapping in YAML, whose keys may not repeat. ConfigError, with the source's name."""
    try:
        tree = yaml.load(text, _UniqueKeys) or {}  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date
        raise ConfigError(f"{source}: not valid YAML ({' '.join(str(error).split())})", "Correct the file.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: not a mapping of keys to values", "Correct the file.")
    return tree


def _parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as {"a": {"b": c}}, c read as YAML (with 1e-4 as a number)."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z_0-9]+(\.[A-Za-z_0-9-]+)*", key):
        raise ConfigError(f"--set {text}: not of the form a.b=c", "Write it as in --set sit.steps=1000.")
    try:
        leaf = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):  # ValueError: an invalid date
        leaf = value
    for part in reversed(key.split(".")):
        leaf = {part: leaf}
    assert isinstance(leaf, dict)
    return leaf


def _check_used(config: Config, overrides: list[dict[str, Any]]) -> None:
    """ConfigError for an override of the training of a network that is imported, and so not trained.

    What a preset has of its parents is no wish; what is set on the command line is.
    """
    used = {"tokenizer": (config.tokenizer.imported, OF_IMPORTED), "sit": (config.sit.imported, {"imported", "level"})}
    for name, (imported, fields) in used.items():
        for override in overrides if imported is not None else ():
            section = override.get(name)
            idle = sorted(section.keys() - fields) if isinstance(section, dict) else []
            if idle:
                raise ConfigError(
                    f"{name}.{idle[0]} has no effect: {name}.imported is used as it is, and not trained",
                    "Leave it out.",
                )


# Fields of `sample` that are read with some methods alone.
_OF_METHODS: dict[str, tuple[SamplerMethod, ...]] = {
    "last_step": ("sde",),
    "tolerances": ("dopri5",),
    "steps": ("euler", "heun", "ddim", "sde"),
}


def _check_read(config: Config, overrides: list[dict[str, Any]]) -> None:
    """ConfigError for an override of the sampler that its method does not read, and that would yet count."""
    chosen = config.sample.method
    for name, methods in _OF_METHODS.items():
        given = any(name in own for override in overrides if isinstance(own := override.get("sample"), dict))
        if given and chosen not in methods:
            raise ConfigError(
                f"sample.{name} has no effect with sample.method {chosen}",
                f"Leave it out, or set sample.method to {' or '.join(methods)}.",
            )


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: ValidationError, preset: str) -> tuple[str, str]:
    """Problem and hint for the first validation error."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key ({preset})", _nearest(first["loc"])
    given = "" if isinstance(first["input"], (dict, BaseModel)) else f" (given: {first['input']!r})"
    where = f"{key}: " if key else ""
    return (
        f"{where}{message[0].lower()}{message[1:]}{given}",
        "See `python -m pipeline config schema` for the values of each key.",
    )


def _nearest(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        kinds = get_args(section.model_fields[part].annotation) or (section.model_fields[part].annotation,)
        section = next(kind for kind in kinds if hasattr(kind, "model_fields"))
    close = difflib.get_close_matches(str(location[-1]), list(section.model_fields), n=1)
    return f"Did you mean '{close[0]}'?" if close else f"Use one of {', '.join(section.model_fields)}."
