"""Annotations of GitHub Actions, shown at an activation's definition in a pull request."""

from __future__ import annotations

import os
from collections.abc import Iterable

from relucheck.gate.report.diagnoses import Diagnosis


def on_github() -> bool:
    """Whether this process is a step of a job of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def annotated(diagnoses: Iterable[Diagnosis]) -> str:
    """Return one workflow command a diagnosis, each on a line.

    The form is that of https://docs.github.com/actions/reference/workflow-commands-for-github-actions.
    """
    return "".join(f"{_line(diagnosis)}\n" for diagnosis in diagnoses)


def _line(diagnosis: Diagnosis) -> str:
    file, _, line = diagnosis.main["defined"].rpartition(":")
    root = os.environ.get("GITHUB_WORKSPACE", os.getcwd())
    file = os.path.relpath(file, root) if file.startswith(root + os.sep) else file
    where = f"file={_property(file)},line={line}," if file else ""
    return f"::error {where}title={_property(f'relucheck {diagnosis.id}')}::{_text(diagnosis.numbers())}"


def _text(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _text(text).replace(":", "%3A").replace(",", "%2C")
