"""Progress of long work: a bar on a terminal, with text below it, and lines elsewhere."""

from __future__ import annotations

import io

import pytest

from relucheck.results.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A stream that rich takes for a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_forced_colour_makes_no_bar_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    with Progress(10, "work", "items", stream=stream) as progress:
        assert not progress.live
        progress.advance(3)
        progress.line("a line")
    assert stream.getvalue().startswith("work: a line [3/10 items")
    assert "\x1b" not in stream.getvalue()


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with Progress(10, "work", "items", done=4, stream=stream) as progress:
        assert progress.live
        progress.advance(3, "a note")
        progress.line("a line")
    shown = stream.getvalue()
    assert "a line" in shown
    assert "7/10" in shown
    assert "a note" in shown
    silent = terminal(monkeypatch)
    with Progress(10, "work", stream=silent, enabled=False) as progress:
        progress.advance()
        progress.line("a line")
    assert silent.getvalue() == ""


def test_further_lines_of_a_note_stand_below_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with Progress(10, "work", stream=stream) as progress:
        progress.report(3, "a note\nfirst [x] row\nsecond row")
        progress.line("a line")
    shown = stream.getvalue()
    assert "a line\n" in shown
    assert " a note\nfirst [x] row\nsecond row\n" in shown


def test_without_a_bar_notes_of_steps_are_not_shown() -> None:
    stream = io.StringIO()
    with Progress(10, "work", stream=stream) as progress:
        progress.report(3, "a note\nfirst row")
        progress.report(0, "a line")
    assert stream.getvalue().startswith("work: a line [3/10 steps")
