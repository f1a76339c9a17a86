"""Makes what the README shows of the training comparisons: its table, and ``docs/images/error-by-subgradient.png``.

    python tools/front_page.py

Both are computed from the committed summaries of E2 on a CPU and on CUDA. The script draws the figure and prints the
table; a test compares the README with what it prints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from relucheck.results.figures import blank, save
from relucheck.results.tables import Table

ROOT: Final = Path(__file__).parents[1]
SUMMARIES: Final = tuple(ROOT / "reports" / "training" / name / "summary.json" for name in ("E2", "E2-cuda"))
FIGURE: Final = ROOT / "docs" / "images" / "error-by-subgradient.png"

#: The comparisons of 50 epochs with 3 or 5 seeds each, and what a newcomer calls their arithmetic.
ARITHMETICS: Final = {
    "float32": "float32",
    "bfloat16-rounded": "bfloat16, each product rounded once",
    "bfloat16-published": "bfloat16, partial sums of the first layer rounded",
    "bfloat16-split-k-4": "bfloat16, partial sums of all layers rounded",
}
#: Each rule: what the README calls it, and its colour and marker (palette: Okabe and Ito 2008, colour-blind safe).
RULES: Final = {"chain": ("s times upstream", "#0072B2", "o"), "injected": ("s alone", "#D55E00", "v")}
Cells = Mapping[tuple[str, str, float], Mapping[str, Any]]


def summaries() -> dict[str, Any]:
    """The cells and the published figures of both summaries."""
    every = [json.loads(path.read_text(encoding="utf-8")) for path in SUMMARIES]
    return {name: [one for summary in every for one in summary[name]] for name in ("cells", "published")}


def cells(summary: Mapping[str, Any]) -> Cells:
    """The members of the comparisons shown, by comparison, rule and subgradient; the control is left out."""
    return {
        (cell["comparison"], cell["rule"], cell["subgradient"]): cell
        for cell in summary["cells"]
        if cell["comparison"] in ARITHMETICS and not cell["control"]
    }


def _error(cell: Mapping[str, Any]) -> str:
    return f"{100 - cell['summary']['mean']:.2f} ± {cell['summary']['sd']:.2f}"


def table(summary: Mapping[str, Any]) -> Table:
    """Test errors in %, mean and standard deviation over the seeds, for s = 0 and for s = 1 under both rules."""
    shown = cells(summary)
    rows = []
    for name, label in ARITHMETICS.items():
        reference = shown[name, "chain", 0.0]
        errors = [reference, *(shown[name, rule, 1.0] for rule in RULES)]
        rows.append([label, f"{reference['hits']:,.1f}", *map(_error, errors)])
    numbers = ("zeros per epoch", "s = 0", *(f"s = 1: {label}" for label, _, _ in RULES.values()))
    return Table(("arithmetic", *numbers), rows, right=numbers)


def _points(shown: Cells, name: str, rule: str) -> Iterator[tuple[float, float, float]]:
    """Subgradient, mean error in %, standard deviation; s = 0 is the same run under both rules."""
    for subgradient in sorted({subgradient for comparison, _, subgradient in shown if comparison == name}):
        cell = shown[name, "chain" if subgradient == 0 else rule, subgradient]
        yield subgradient, 100 - cell["summary"]["mean"], cell["summary"]["sd"]


def figure(summary: Mapping[str, Any]) -> Any:
    """Test error against s, one panel for each arithmetic, both rules in each; bars: standard deviation."""
    shown = cells(summary)
    drawn = blank(9.2, 2.9)
    axes = drawn.subplots(1, len(ARITHMETICS), sharey=True)
    for axis, (name, label) in zip(axes, ARITHMETICS.items(), strict=True):
        for rule, (text, colour, marker) in RULES.items():
            s, mean, sd = zip(*_points(shown, name, rule), strict=True)
            axis.errorbar(s, mean, sd, color=colour, marker=marker, markersize=4, capsize=2, linewidth=1, label=text)
        published = [entry["published"] for entry in summary["published"] if entry["published"]["comparison"] == name]
        axis.plot(
            [point["subgradient"] for point in published],
            [point["value"] for point in published],
            color="#000000",
            marker="x",
            markersize=5,
            linestyle="none",
            label="published [R22]",
        )
        axis.set_title(label.replace(", ", ",\n").replace(" of ", "\nof "), fontsize=9)
        axis.set_xlabel("s = ReLU'(0)", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)  # of all, once everything is drawn
    axes[0].set_ylabel("test error after 50 epochs, %", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False, title="gradient at an exact zero", title_fontsize=8)
    return drawn


def main() -> None:
    """Draws the figure and prints the table."""
    summary = summaries()
    FIGURE.parent.mkdir(exist_ok=True)
    save(figure(summary), FIGURE)
    print("\n".join(table(summary).markdown()))


if __name__ == "__main__":
    main()
