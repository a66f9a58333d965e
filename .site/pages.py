"""Pages of the docs site that are not files in `docs/`, as hooks of mkdocs.

- The README and the other Markdown files of the root folder, and the notebooks.
- A page per public package, with the docstring of every public name.
- A page per file that a page links to, since files outside of `docs/` are not part of the site.
"""

from __future__ import annotations

import importlib
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PUBLIC = ("adafuse_core", "adafuse_integrations.langchain", "adafuse_integrations.llama_index")
SHOWN = {  # files outside of `docs/` with a page in the navigation
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    **{f"examples/notebooks/{path.name}": f"tutorials/{path.stem}.md" for path in ROOT.glob("examples/notebooks/*")},
}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files in `docs/`."""
    for name, page in SHOWN.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=notebook_page(text) if name.endswith(".ipynb") else text))
    for package in PUBLIC:
        files.append(File.generated(config, f"api/{package}.md", content=api_page(package)))
    texts = {_in_repository(file.src_uri): file.content_string for file in files.documentation_pages()}
    linked = {target for name, text in texts.items() for target in _targets(name, text)}
    for target in sorted(linked):
        if _is_source(target):
            files.append(File.generated(config, _page_of(target), content=source_page(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to pages of the site."""
    if page.file.src_uri.startswith(("api/", "source/")):
        return markdown
    name, here = _in_repository(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        if "://" in link[2]:
            return link[0]
        return f"{link[1]}{posixpath.relpath(_page_of(_target(name, link[2])), here or '.')}{link[3] or ''}{link[4]}"

    parts = _FENCE.split(markdown)  # every second part is code
    return "".join(part if index % 2 else _LINK.sub(moved, part) for index, part in enumerate(parts))


def api_page(package: str) -> str:
    """The page of a public package: the docstrings of all its public names, which mkdocstrings inserts."""
    module = importlib.import_module(package)
    names = [f"::: {package}.{name}" for name in module.__all__]
    return "\n\n".join([f"# {package}", (module.__doc__ or "").strip(), *names]) + "\n"


def source_page(name: str) -> str:
    """The page of a file, or of the files in a folder."""
    path = ROOT / name
    title = f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n"
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(("_", ".")))
        return title + "\n".join(f"- `{entry}`" for entry in inside) + "\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return title + _LINK.sub(r"\2", text)  # its links are relative to another folder
    return f"{title}````{path.suffix.lstrip('.')}\n{text}\n````\n"


def notebook_page(text: str) -> str:
    """The cells of a notebook as Markdown."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells) + "\n"


def _targets(name: str, text: str) -> Iterator[str]:
    """The files of the repository that a page links to."""
    for link in _LINK.finditer("".join(_FENCE.split(text)[::2])):
        if "://" not in link[2]:
            yield _target(name, link[2])


def _target(name: str, link: str) -> str:
    """The path in the repository that a link of a file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def _in_repository(page: str) -> str:
    """The file of the repository that a page of the site shows."""
    return next((name for name, shown in SHOWN.items() if shown == page), f"docs/{page}")


def _is_source(name: str) -> bool:
    return name not in SHOWN and not PurePosixPath(name).is_relative_to("docs")


def _page_of(name: str) -> str:
    """The page that shows a file of the repository."""
    if not _is_source(name):
        return SHOWN.get(name, name.removeprefix("docs/"))
    shown = f"source/{name.lstrip('.')}"  # mkdocs leaves hidden files out
    return f"{shown}/index.md" if (ROOT / name).is_dir() else f"{shown}.md"
