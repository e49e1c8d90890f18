"""The config tree as flat fields by dotted name, and back: the form in fingerprints, manifests and MLflow."""

from typing import Any

from pipeline.config.fields import Section, value_as_before
from pipeline.config.schema import Config


def flattened(config: Config, without_added: bool = False) -> dict[str, Any]:
    """The fields of all sections by dotted name, as JSON values.

    `without_added`: omit fields that were added after a release and have their `as_before` value.
    """
    tree = config.model_dump(mode="json")
    if without_added:
        tree = _without_added(config, tree)
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(
            {f"{name}.{key}": leaf for key, leaf in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat


def unflattened(fields: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flattened`."""
    tree: dict[str, Any] = {}
    for name, value in fields.items():
        section, _, field = name.partition(".")
        if field:
            tree.setdefault(section, {})[field] = value
        else:
            tree[section] = value
    return tree


def values_as_before() -> dict[str, Any]:
    """The fields that were added after a release, by dotted name, with their `as_before` values."""
    found = {}
    for section, about in Config.model_fields.items():
        fields = getattr(about.annotation, "model_fields", {})
        for name in fields:
            if (before := value_as_before(about.annotation, name)) is not None:  # type: ignore[arg-type]
                found[f"{section}.{name}"] = before[0]
    return found


def _without_added(section: Section, values: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        if value_as_before(type(section), name) == (value,):
            continue
        inner = getattr(section, name)
        kept[name] = _without_added(inner, value) if isinstance(inner, Section) else value
    return kept
