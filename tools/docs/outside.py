"""An MkDocs hook: pages and figures that lie outside docs/ (reports, changelog, licences) are part of the site.

Documents link to them by paths in the repository, as GitHub and editors follow them. The hook adds the files under their
path in the repository and rewrites the links, so that ``mkdocs build --strict`` checks them too.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_DOCS: Final = "docs/"
_OUTSIDE: Final = (
    *("reports/**/*.md", "reports/**/*.png", "CHANGELOG.md", "CONTRIBUTING.md", "tests/README.md"),
    *("LICENSE", "relucheck/_data/LICENSE-MNIST"),
)
_LINK: Final = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)(?P<path>[^)\s#]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the files of the repository that documents link to."""
    root = Path(config.docs_dir).parent
    for pattern in _OUTSIDE:
        for path in sorted(root.glob(pattern)):
            files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **kwargs: Any) -> str:
    """Rewrites a page's links from paths in the repository to paths in the site."""
    site = page.file.src_uri
    repository = site if page.file.generated_by else _DOCS + site

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(repository), match["path"]))
        return posixpath.relpath(target.removeprefix(_DOCS), posixpath.dirname(site) or ".")

    return _LINK.sub(moved, markdown)
