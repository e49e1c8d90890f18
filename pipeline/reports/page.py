"""HTML markup of the report: elements of one self-contained page, and its style. All text is escaped here.

`report.py` decides on the content.
"""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--quiet:#66727f;--line:#e3e7eb;--ground:#f7f8f9;--sheet:#fff;
--accent:#2a6f97;--made:#2f7d5b;--made-ground:#e6f3ec;--wait:#8a6412;--wait-ground:#faf1dc}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--quiet:#93a0ad;--line:#2c343c;--ground:#14181c;--sheet:#1b2127;
--accent:#6fb1d8;--made:#7fcba5;--made-ground:#1d3329;--wait:#e0bd6a;--wait-ground:#352c17}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:48px 24px 72px}
header p{margin:0}
h1{font-size:32px;line-height:1.2;letter-spacing:-.01em;margin:4px 0 10px}
h2{font-size:18px;margin:48px 0 14px}
.kind{color:var(--accent);font-size:13px;font-weight:600;letter-spacing:.02em}
.facts{color:var(--quiet)}
.facts span+span::before{content:"·";margin:0 .55em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:14px;margin-top:30px}
.card{background:var(--sheet);border:1px solid var(--line);border-radius:10px;padding:16px 18px}
.card p{margin:0;color:var(--quiet);font-size:13px}
.card strong{display:block;font-size:26px;font-weight:600;line-height:1.35;font-variant-numeric:tabular-nums}
.sheet{background:var(--sheet);border:1px solid var(--line);border-radius:10px;overflow-x:auto}
.sheet+.sheet{margin-top:14px}
.sheet.wide{width:max-content;min-width:100%;max-width:calc(100vw - 48px);position:relative;left:50%;
transform:translateX(-50%)}
.wide th:first-child,.wide td:first-child{position:sticky;left:0;background:var(--sheet);white-space:nowrap}
table{width:100%;border-collapse:collapse}
th,td{text-align:left;vertical-align:top;padding:9px 16px}
th{color:var(--quiet);font-size:12.5px;font-weight:500;white-space:nowrap}
tbody tr{border-top:1px solid var(--line)}
th.number{text-align:right}
td .number{display:block;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
code{font:12.5px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
a{color:var(--accent)}
.quiet{color:var(--quiet)}
.chip{display:inline-block;border-radius:99px;padding:1px 10px;font-size:12.5px;white-space:nowrap;
color:var(--quiet);background:var(--ground)}
.chip.cached{color:var(--made);background:var(--made-ground)}
.chip.resumable{color:var(--wait);background:var(--wait-ground)}
.bar{display:block;width:150px;height:6px;margin-top:9px;border-radius:3px;background:var(--ground)}
.bar i{display:block;height:100%;border-radius:3px;background:var(--accent)}
figure{margin:0 0 20px;background:#fff;border:1px solid var(--line);border-radius:10px;overflow:hidden}
figure img{display:block;max-width:min(100%,860px);max-height:900px;height:auto;margin:0 auto}
figcaption{background:var(--sheet);border-top:1px solid var(--line);color:var(--quiet);padding:10px 18px;font-size:14px}
.notes{color:var(--quiet);font-size:14px;padding-left:1.2em;margin:14px 0 0}
details{background:var(--sheet);border:1px solid var(--line);border-radius:10px;margin-bottom:8px;overflow:hidden}
summary{cursor:pointer;padding:10px 16px}
details .sheet{border:0;border-top:1px solid var(--line);border-radius:0}
details td:first-child{width:45%}
@media print{body{background:#fff}.card,.sheet,figure,details{break-inside:avoid}}
"""


_NUMBER = '<span class="number">'


def document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def header(title: str, facts: Sequence[str]) -> str:
    spans = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f'<header><p class="kind">Denoising-VAE</p><h1>{escape(title)}</h1><p class="facts">{spans}</p></header>\n'


def cards(numbers: Sequence[tuple[str, str, str]]) -> str:
    """(title, number, explanation), side by side."""
    elements = [
        f'<div class="card"><p>{escape(title)}</p><strong>{escape(number)}</strong><p>{escape(note)}</p></div>'
        for title, number, note in numbers
    ]
    return f'<div class="cards">{"".join(elements)}</div>\n' if elements else ""


def section(title: str, content: str, notes: Sequence[str] = ()) -> str:
    """A heading, markup, and notes below it; empty without content."""
    if not content:
        return ""
    return f"<section><h2>{escape(title)}</h2>\n{content}{note_list(notes)}</section>\n"


def note_list(notes: Sequence[str]) -> str:
    """A list in small print; empty without notes."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], wide: bool = False) -> str:
    """A table; cells are markup, headings are text, right-aligned above numbers. Empty without rows.

    A wide one has the width of the window, if it needs that, and not that of the text; its first column stays in sight.
    """
    if not rows:
        return ""
    columns = zip(*rows, strict=True)
    kinds = [' class="number"' if any(cell.startswith(_NUMBER) for cell in column) else "" for column in columns]
    head = "".join(f"<th{kind}>{escape(heading)}</th>" for kind, heading in zip(kinds, headings, strict=True))
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    sheet = "sheet wide" if wide else "sheet"
    return f'<div class="{sheet}"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def figures(pictures: Sequence[tuple[str, str]]) -> str:
    """Figures from (URI, caption), one below the other."""
    return "".join(
        f'<figure><img src="{escape(uri)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
        for uri, caption in pictures
    )


def folded(title: str, content: str) -> str:
    """A collapsible element."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>\n"


def text(value: str) -> str:
    return escape(value)


def quiet(value: str) -> str:
    return f'<span class="quiet">{escape(value)}</span>'


def code(value: str) -> str:
    return f"<code>{escape(value)}</code>" if value else ""


def lines(values: Sequence[str]) -> str:
    return "<br>".join(code(value) for value in values)


def link(uri: str, words: str) -> str:
    return f'<a href="{escape(uri)}">{escape(words)}</a>'


def number(value: str) -> str:
    return f"{_NUMBER}{escape(value)}</span>"


def chip(word: str, kind: str) -> str:
    return f'<span class="chip {escape(kind)}">{escape(word)}</span>'


def bar(share: float) -> str:
    """A bar of this share, in [0, 1], of the longest one."""
    return f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>'
