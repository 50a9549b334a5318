"""Pages link to files of the repository by relative paths; in the site each such file gets a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

_LINK = re.compile(r"\]\(((?:\.\./)+)([^)#\s]+)\)")

FOLDER = "repository"
"""Where these pages are."""


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every linked file."""
    root = Path(config.docs_dir).parent
    pages = list(files.documentation_pages())
    for path in sorted({path for page in pages for path in _linked(page, root)}):
        text = (root / path).read_text(encoding="utf-8")
        shown = text if path.suffix == ".md" else f"# {path}\n\n````{path.suffix[1:]}\n{text}````\n"
        files.append(File.generated(config, _page(path), content=shown, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to files of the repository at their pages."""
    root, here = Path(config.docs_dir).parent, Path(page.file.src_uri).parent

    def target(found: re.Match[str]) -> str:
        path = _in_repository(here, found, root)
        return found[0] if path is None else f"]({'../' * len(here.parts)}{_page(path)})"

    return _LINK.sub(target, markdown)


def _linked(page: File, root: Path) -> list[Path]:
    here = Path(page.src_uri).parent
    found = [_in_repository(here, link, root) for link in _LINK.finditer(page.content_string)]
    return [path for path in found if path is not None]


def _in_repository(here: Path, link: re.Match[str], root: Path) -> Path | None:
    """The file that a link names, from the root of the repository; None when it is below docs/, or none."""
    path = (root / "docs" / here / link[1] / link[2]).resolve()
    outside = path.is_file() and path.is_relative_to(root) and not path.is_relative_to(root / "docs")
    return path.relative_to(root) if outside else None


def _page(path: Path) -> str:
    return f"{FOLDER}/{path.as_posix().removesuffix('.md')}.md"
