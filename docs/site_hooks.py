"""What mkdocs needs to know of this repository: its documents outside of docs/, and a page of reference a package.

mkdocs calls these functions by name (mkdocs.yml). Nothing of the project is imported.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCUMENTS = {  # page of the site: document of the repository
    "index.md": "README.md",
    "chart.md": "helm/denoising-vae/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def _reference() -> dict[str, str]:
    """Page to the package or room that it describes, in the order of the floors."""
    pages = {"reference/models.md": "models"}
    for path in sorted((ROOT / "pipeline").iterdir()):
        is_room = (path / "__init__.py").exists() or (path.suffix == ".py" and not path.stem.startswith("__"))
        if is_room:
            pages[f"reference/pipeline/{path.stem}.md"] = f"pipeline.{path.stem}"
    return {**pages, "reference/deploy.md": "deploy"}


def on_config(config: Any) -> Any:
    """The reference in the navigation."""
    pages = _reference()
    rooms = [{name.partition(".")[2]: page} for page, name in pages.items() if name.startswith("pipeline.")]
    reference = [{"models": "reference/models.md"}, {"pipeline": rooms}, {"deploy": "reference/deploy.md"}]
    config.nav = [*config.nav, {"Reference": reference}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Pages that are no files of docs/."""
    made = {page: (ROOT / source).read_text() for page, source in DOCUMENTS.items()}
    made |= {page: f"::: {name}\n" for page, name in _reference().items()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between documents as links between pages; what has no page is named by its path."""
    here = page.file.src_uri
    source = DOCUMENTS.get(here, f"docs/{here}")

    def target_of(link: str) -> str:
        """Where a relative link leads in the repository; a page of the site by the path that it has here."""
        path = normpath(join(dirname(source), link))
        return {document: name for name, document in DOCUMENTS.items()}.get(path) or path.removeprefix("docs/")

    def link(match: re.Match[str]) -> str:
        path, mark, anchor = match["target"].partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        found = target_of(path)
        if found in DOCUMENTS or (ROOT / "docs" / found).exists():
            return f"[{match['text']}]({relpath(found, dirname(here) or '.')}{mark}{anchor})"
        if not (ROOT / found).exists():
            raise PluginError(f"{source} links to {path}, which is not there")
        return match["text"] if found in match["text"] else f"{match['text']} (`{found}`)"

    def picture(match: re.Match[str]) -> str:
        return f"![{match['text']}]({relpath(target_of(match['target']), dirname(here) or '.')})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _PICTURE.sub(picture, _LINK.sub(link, part)) for part in parts)
