"""A griffe extension: docstrings as the site's handler reads them, so that their text can stay as editors show it well.

- Sphinx roles (:class:`X`) become links; mkdocstrings reads Markdown, where a role would print as it stands. The links are
  optional: what the site has no page for becomes plain code.
- What a function returns is a sentence, whose first words griffe would take for a type where a colon follows.
- Entries for several parameters at once (``width, height: upper limits``) become an entry each, as griffe expects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import griffe

_ROLE: Final = re.compile(r":(?:mod|class|func|meth|attr|data|exc):`(?P<short>~?)(?P<target>[\w.]+)`")
#: An entry of a section (indented once) with more than one name, and the lines that belong to it (indented twice).
_GROUP: Final = re.compile(r"^    (?P<names>\w+(?:, \w+)+):(?P<text>.*(?:\n {8}.*)*)", re.MULTILINE)

#: The beginning of the sentence on what a function returns.
_RETURNED: Final = re.compile(r"^(?P<title>Returns|Yields):\n {4}(?=\S)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of a package when all of it is loaded, so that every name can be resolved."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for item in _objects(pkg):
            if item.docstring is not None:
                text = _GROUP.sub(_apart, item.docstring.value)
                text = _RETURNED.sub(r"\g<title>:\n    : ", text)  # an empty type: griffe takes the annotation's
                item.docstring.value = _ROLE.sub(lambda match, item=item: _link(item, match), text)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _apart(match: re.Match[str]) -> str:
    return "\n".join(f"    {name}:{match['text']}" for name in match["names"].split(", "))


def _link(item: griffe.Object, match: re.Match[str]) -> str:
    target = match["target"]
    text = target.rpartition(".")[2] if match["short"] else target
    path = target if target.startswith("relucheck") else _resolved(item, target)
    return f'<autoref identifier="{path}" optional><code>{text}</code></autoref>'


def _resolved(item: griffe.Object, name: str) -> str:
    """The full path of a name, as code at the place of the docstring would understand it."""
    try:
        return item.resolve(name)
    except griffe.NameResolutionError:
        return name
