"""README's table of the paper's rows, made of the presets: `python -m tests.support.paper_rows` writes it anew.

A row's name and the paper's numbers are those of the preset's header, everything else is what the preset resolves to.
"""

import re
from typing import NamedTuple

from pipeline.config import PRESETS, load_config, preset_names
from tests.support import PROJECT

README = PROJECT / "README.md"
HEAD = (
    "| row | preset | level | alignment | guidance | steps | rFID | gFID |",
    "|---|---|---|---|---|---|---|---|",
)


class Header(NamedTuple):
    """What a preset's comment says."""

    row: str
    """Table 1, f16 d16, "MLSR"."""
    rfid: str
    gfid: str
    """As printed, several where the paper has several columns; a dash where it has none."""


def rows() -> list[str]:
    """The presets in folders, by table and tokenizer; of one tokenizer, what is added to it comes later."""
    return sorted((name for name in preset_names() if name.startswith("table")), key=_place)


def _place(preset: str) -> tuple[str, int, str]:
    row = header(preset).row
    return row.partition('"')[0], len(row), row


def header(preset: str) -> Header:
    comment = [line for line in (PRESETS / f"{preset}.yaml").read_text().splitlines() if line.startswith("#")]
    row, colon, _ = comment[0].removeprefix("# ").partition(": ")
    assert colon, comment[0]
    (paper,) = [line for line in comment if line.startswith("# Paper: ")]
    return Header(row, *(_numbers(paper, name) for name in ("rFID", "gFID")))


def _numbers(paper: str, name: str) -> str:
    found = re.search(rf"\b{name} (\d[\d., ]*\d)", paper)
    return found[1] if found else "-"


def table() -> str:
    """The table, as it has to be."""
    lines = [*HEAD]
    for preset in rows():
        own, said = load_config(preset), header(preset)
        sit, guidance = own.sit, own.sample.guidance
        cells = [said.row, f"`{preset}`", str(sit.level), sit.alignment, f"{guidance:g}", f"{sit.steps:,}", *said[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def written() -> str:
    """README's table, as it is."""
    text = README.read_text()
    return HEAD[0] + text.partition(HEAD[0])[2].partition("\n\n")[0]


if __name__ == "__main__":
    README.write_text(README.read_text().replace(written(), table()))
