"""The tables of searches: the trials of each, and the best ones beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from relucheck.reproduction.published import SEARCHED
from relucheck.reproduction.report.searching.points import Point, measured_points, published_points
from relucheck.reproduction.report.tables import number
from relucheck.results.tables import Table, counted, listed, with_verb
from relucheck.search import SearchResult

#: The columns that a terminal of 80 columns has no room for.
_WIDE: Final = ("loss", "ended")
_DRAWN: Final = ("batch", "lr", "alpha", "beta")
_RIGHT: Final = (*_DRAWN, "epochs", "accuracy %", "loss", "hits at 0", "at 6", "median %", "ended", "finished")


def trial_table(result: SearchResult, title: str = "") -> Table:
    """All trials of a search that have ended, with the best first."""
    text = title or f"trials of the search on {result.search.network} ({result.search.arithmetic.name})"
    return _table(measured_points(result), text, with_hits=True)


def published_table(model: str, subgradients: str) -> Table:
    """All trials of a published search, with the best first.

    Args:
        model: "mobilenet_v3_small" or "mlp_2000".
        subgradients: "tuned" or "default".
    """
    title = f"published trials [R22]: {SEARCHED[model]}, {subgradients} subgradients (bfloat16, GPU)"
    return _table(published_points(model, subgradients), title, with_hits=False)


def _table(points: Sequence[Point], title: str, *, with_hits: bool) -> Table:
    header = ["trial", *_DRAWN, "epochs", "accuracy %", "loss", *["hits at 0", "at 6"] * with_hits, "outcome"]
    rows = [
        [
            *(point.name, *_drawn(point), str(point.epochs), number(point.accuracy), number(point.loss, 4)),
            *([f"{count:,}" for count in point.hits] + ["-"] * (2 - len(point.hits)) if with_hits else []),
            point.outcome,
        ]
        for point in points
    ]
    return Table(header, rows, title, right=_RIGHT)


def _drawn(point: Point) -> tuple[str, ...]:
    return str(point.batch_size), f"{point.lr:.3g}", f"{point.alpha:.3f}", f"{point.beta:.3f}"


def side_by_side(result: SearchResult, model: str, subgradients: str) -> Table:
    """The trials of a search beside those of a published one, rank by rank.

    The two searches have drawn different trials, so only their ranks and ranges can be compared.
    """
    ours, theirs = measured_points(result), published_points(model, subgradients)
    columns = (*_DRAWN, "epochs", "accuracy %")
    header = ["rank", *columns, *(f"published {name}" for name in columns)]
    rows = []
    for rank in range(max(len(ours), len(theirs))):
        cells = [str(rank + 1)]
        for points in (ours, theirs):
            point = points[rank] if rank < len(points) else None
            cells += [""] * 6 if point is None else [*_drawn(point), str(point.epochs), number(point.accuracy)]
        rows.append(cells)
    return Table(header, rows, right=header)


def best_table(searches: Mapping[str, SearchResult], model: str | None = None) -> Table:
    """The best trial of each search, beside those of the published searches of a model.

    Args:
        searches: by a name for its row, for example "tuned, chain".
        model: "mobilenet_v3_small" or "mlp_2000"; None leaves out the published rows.
    """
    every = {name: measured_points(result) for name, result in searches.items()}
    if model is not None:
        every |= {f"{kind} [R22]": published_points(model, kind) for kind in ("tuned", "default")}
    header = ["search", *_DRAWN, "accuracy %", "loss", "median %", "ended", "finished"]
    rows = [[name, *_best(points)] for name, points in every.items()]
    return Table(header, rows, "the best trial of each search, and the median of all", right=_RIGHT, caption=LEGEND)


#: What the columns of ``best_table`` mean that speak of all trials.
LEGEND: Final = "median %: accuracy over all trials, where a diverged one counts as 0; finished: not stopped by ASHA."


def _best(points: Sequence[Point]) -> list[str]:
    if not points or points[0].accuracy is None:
        return [*["-"] * 7, str(len(points)), "0"]
    best, finished = points[0], sum(point.outcome == "finished" for point in points)
    middle = median(0.0 if point.accuracy is None else point.accuracy for point in points)
    values = (*_drawn(best), number(best.accuracy), number(best.loss, 4), number(middle))
    return [*values, str(len(points)), str(finished)]


def shown(searches: Mapping[str, SearchResult], model: str | None = None) -> list[Any]:
    """What a terminal shows of searches: the trials of each, then the best ones.

    The arguments are those of ``best_table``. The loss is left out, so that the tables fit into 80 columns.
    """
    each = [trial_table(result, f"{name}: {result.search.network}") for name, result in searches.items()]
    return [table.without(*_WIDE).rich(frame=False) for table in (*each, best_table(searches, model))]


def sentence(name: str, result: SearchResult) -> str:
    """Say in words how a search went, for a conclusion."""
    points = measured_points(result)
    words = {
        "finished": ("trained to the end", "trained to the end"),
        "stopped": ("was stopped by ASHA", "were stopped by ASHA"),
        "diverged": ("diverged", "diverged"),
    }
    counts = {outcome: sum(point.outcome == outcome for point in points) for outcome in words}
    parts = [with_verb(count, *words[outcome]) for outcome, count in counts.items() if count]
    ended = f"{name}: of {counted(len(points), 'trial')}, {listed(parts)}"
    if left := result.search.trials - len(points):
        ended += f" ({with_verb(left, 'more has', 'more have')} not ended yet)"
    best = result.best
    if best is None or best.last is None:
        return f"{ended}."
    return f"{ended}; the best is trial {best.draw.number} with {100 * best.last.accuracy:.2f} %."
