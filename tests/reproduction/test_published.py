"""The published counts of hits: how many there are, their sums, and the forms that they take."""

from __future__ import annotations

import collections

from relucheck.networks.network import ACTIVATIONS
from relucheck.numerics.dtypes import as_dtype
from relucheck.reproduction.published import PublishedCount, counts


def _series() -> dict[tuple[str, str, str, str, float], list[PublishedCount]]:
    """The counts of single epochs, by experiment, dtype, network, run and kink."""
    found = collections.defaultdict(list)
    for one in counts():
        if isinstance(one.epoch, int):
            found[one.experiment, one.dtype, one.network, one.member, one.kink].append(one)
    return dict(found)


def test_series_have_their_lengths_and_sums() -> None:
    """The sums were added up from the source by themselves."""
    mlp, mobilenet, deep = "784-128-10", "mobilenet-v3-small", "784-200-200-200-10"
    assert {key: (len(rows), sum(row.hits for row in rows)) for key, rows in _series().items()} == {
        ("E2", "bfloat16", deep, "s = 0", 0.0): (10, 8328),
        ("E2", "bfloat16", deep, "s = 1", 0.0): (10, 1172),
        ("E2", "bfloat16", deep, "s = 2", 0.0): (10, 978),
        ("E2", "bfloat16", deep, "s = 4", 0.0): (10, 893),
        ("E2", "bfloat16", deep, "s = 8", 0.0): (10, 838),
        ("E5", "bfloat16", "residual-20", "all", 0.0): (3, 10126672),
        ("E9", "bfloat16", mlp, "default", 6.0): (8, 13417),
        ("E9", "bfloat16", mlp, "custom", 6.0): (5, 150),
        ("E9", "bfloat16", mobilenet, "default", 6.0): (10, 12638),
        ("E9", "bfloat16", mobilenet, "custom", 6.0): (10, 359),
    }


def test_epochs_follow_one_another() -> None:
    for (experiment, _, network, _, _), rows in _series().items():
        epochs = [row.epoch for row in rows]
        last = [30] if experiment == "E9" and network == "784-128-10" else []  # the source leaves epochs out before it
        assert epochs == [*range(1, len(rows) + 1 - len(last)), *last]
        assert all(row.hits == row.most for row in rows)


def test_accuracies_are_those_of_the_source() -> None:
    printed = collections.defaultdict(list)
    for row in counts():
        if row.accuracy is not None:
            printed[row.experiment, row.member].append(row.accuracy)
    assert printed == {
        ("E2", "s = 0"): [94.71, 95.99, 96.53, 96.82, 97.08, 97.17, 97.25, 97.37, 97.45, 97.56],
        ("E2", "s = 1"): [94.55, 95.29, 95.93, 95.99, 96.11, 96.26, 95.97, 96.06, 96.09, 95.78],
        ("E2", "s = 2"): [96.17],
        ("E2", "s = 4"): [96.48],
        ("E2", "s = 8"): [96.64],
        ("E5", "all"): [98.69, 99.16],
        ("E9", "default"): [94.34],
    }


def test_bounds_and_whole_runs() -> None:
    others = [row for row in counts() if not isinstance(row.epoch, int)]
    assert {(row.experiment, row.dtype, row.epoch, row.hits, row.most) for row in others} == {
        ("E1", "bfloat16", "each", 1, 4),
        ("E1", "float32", "each", 1, 2),
        ("E2", "float32", "run", 1, 1),
        ("E5", "float32", "run", 1, 1),
        ("E9", "bfloat16", "each", 0, 3),
    }
    assert [row.hits for row in counts() if not row.whole] == [2636117]


def test_settings_are_those_that_the_members_names_say() -> None:
    for row in counts():
        assert row.activation in ACTIVATIONS
        assert as_dtype(row.dtype).itemsize in (2, 4)
        assert row.kink in ((0.0, 6.0) if row.activation == "relu6" else (0.0,))
        if row.member.startswith("s = "):
            assert row.subgradients == (float(row.member.removeprefix("s = ")),)
        else:
            assert row.subgradients == ((0.0, 0.0) if row.member == "default" else None)
