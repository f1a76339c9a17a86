"""The table of trials that a terminal shows while a search runs."""

from __future__ import annotations

from typing import Final

from relucheck.results.tables import Table, render
from relucheck.search.records import Records
from relucheck.search.result import TrialEpoch, score
from relucheck.search.space import Draw

#: The rows that a terminal has room for below the bar, and the columns that every terminal has.
_ROWS: Final = 12
_WIDTH: Final = 79
_HEADER: Final = ("trial", "batch", "lr", "alpha", "beta", "epoch", "accuracy %", "loss", "")


def standings(records: Records, most: int = _ROWS) -> str:
    """The trials that have reported an epoch or ended, as a table of text.

    It fits into 80 columns. The best trial by the metric of the search comes first, judged by its last epoch; diverged ones
    come last. Below are the numbers of trials that have not begun and that the table leaves out.

    Args:
        records: of the search.
        most: the largest number of rows.
    """
    search = records.search
    shown = [draw for draw in search.draws if draw.number in records.ended or records.epochs(draw.number)]
    sign = -1 if search.mode == "max" else 1
    ranked = sorted(shown, key=lambda draw: sign * score(search.metric, _last(records, draw)))
    rows = [_row(records, draw) for draw in ranked[:most]]
    left_out = [
        f"{count} {what}"
        for count, what in ((len(shown) - len(rows), "more"), (len(search.draws) - len(shown), "not begun"))
        if count
    ]
    table = Table(_HEADER, rows, right=_HEADER[1:-1])
    return render(table.rich(frame=False), *([", ".join(left_out)] * bool(left_out)), width=_WIDTH, color=False).rstrip()


def _last(records: Records, draw: Draw) -> TrialEpoch | None:
    """The epoch by which a trial is judged; None if it diverged."""
    ended = records.ended.get(draw.number)
    return records.epochs(draw.number)[-1] if ended is None else ended.last


def _row(records: Records, draw: Draw) -> tuple[str, ...]:
    last, ended, epochs = _last(records, draw), records.ended.get(draw.number), records.epochs(draw.number)
    state = "" if ended is None else "diverged" if ended.diverged else "stopped" if ended.stopped else "finished"
    return (
        *(str(draw.number), str(draw.batch_size), f"{draw.lr:.2g}", f"{draw.alpha:.2f}", f"{draw.beta:.2f}"),
        f"{len(epochs)}/{records.search.epochs}",
        "-" if last is None else f"{100 * last.accuracy:.2f}",
        "-" if last is None or last.loss is None else f"{last.loss:.4f}",
        state,
    )
