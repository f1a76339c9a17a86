"""Draws of a search: their distribution, the pairs of a space and its control, and spaces that are refused."""

from __future__ import annotations

import collections
import math
from typing import Any

import pytest

from relucheck.errors import SettingsError
from relucheck.search import Draw, Space

MANY = 4000


def test_the_default_space_is_the_published_one() -> None:
    assert Space() == Space((32, 64, 128), (1e-4, 1e-2), (0.0, 1.0), (0.0, 1.0))


def test_a_draw_depends_on_its_number_and_the_seed_only() -> None:
    few, many = Space().draws(3, 7), Space().draws(20, 7)
    assert few == many[:3]
    assert [draw.number for draw in many] == list(range(20))
    assert Space().draws(3, 8) != few
    # these values are in the identities of stored trials, so they must stay
    assert few[:2] == (
        Draw(0, 2088721499, 32, 0.00704511, 0.380177, 0.955189),
        Draw(1, 736542652, 32, 0.00450366, 0.626316, 0.571175),
    )


def test_draws_are_distributed_as_the_space_says() -> None:
    draws = Space().draws(MANY, 0)
    sizes = collections.Counter(draw.batch_size for draw in draws)
    assert set(sizes) == {32, 64, 128}
    for name, values in {
        "batch size": [[32, 64, 128].index(draw.batch_size) / 3 + 1 / 6 for draw in draws],
        "lr": [math.log10(draw.lr) / 2 + 2 for draw in draws],
        "alpha": [draw.alpha for draw in draws],
        "beta": [draw.beta for draw in draws],
    }.items():
        mean = sum(values) / MANY
        variance = sum((value - mean) ** 2 for value in values) / MANY
        wanted = 2 / 27 if name == "batch size" else 1 / 12
        # 5 standard deviations of the mean of that many
        assert abs(mean - 0.5) < 5 * math.sqrt(wanted / MANY), name
        assert abs(variance - wanted) < 0.006, name
        assert min(values) >= 0, name
        assert max(values) <= 1, name


def test_the_values_of_a_draw_are_independent() -> None:
    draws = Space().draws(MANY, 3)
    columns = [
        [math.log(draw.lr) for draw in draws],
        *([getattr(draw, name) for draw in draws] for name in ("alpha", "beta")),
    ]
    columns += [[float(draw.batch_size) for draw in draws], [float(draw.seed) for draw in draws]]
    for index, one in enumerate(columns):
        for other in columns[:index]:
            assert abs(_correlation(one, other)) < 5 / math.sqrt(MANY)
    assert len({draw.seed for draw in draws}) > MANY - 3
    assert all(0 <= draw.seed < 2**31 for draw in draws)


def _correlation(one: list[float], other: list[float]) -> float:
    means = sum(one) / len(one), sum(other) / len(other)
    products = [sum((x - means[0]) * (y - means[1]) for x, y in zip(one, other, strict=True))]
    squares = [sum((x - mean) ** 2 for x in values) for values, mean in zip((one, other), means, strict=True)]
    return products[0] / math.sqrt(squares[0] * squares[1])


def test_the_control_search_has_the_same_draws_with_subgradients_of_zero() -> None:
    space = Space(batch_sizes=(16, 48), lr=(1e-3, 2e-3), beta=(0.25, 0.5))
    pairs = list(zip(space.draws(50, 5), space.default.draws(50, 5), strict=True))
    for tuned, default in pairs:
        assert (tuned.number, tuned.seed, tuned.batch_size, tuned.lr) == (
            default.number,
            default.seed,
            default.batch_size,
            default.lr,
        )
        assert default.alpha == default.beta == 0
        assert 0 <= tuned.alpha <= 1
        assert 0.25 <= tuned.beta <= 0.5
        assert 1e-3 <= tuned.lr <= 2e-3
    assert any(tuned.alpha for tuned, _ in pairs)


def test_equal_ends_fix_a_value_exactly() -> None:
    third = 1 / 3
    draw = Space((7,), lr=(third, third), alpha=(third, third), beta=(-2, -2)).draws(1, 0)[0]
    assert (draw.batch_size, draw.lr, draw.alpha, draw.beta) == (7, third, third, -2.0)


def test_rounding_does_not_leave_the_range() -> None:
    near = Space(lr=(1.2345678e-3, 1.2345681e-3), alpha=(0.1234561, 0.1234564), beta=(0.9999996, 0.9999999))
    for draw in near.draws(20, 1):
        assert near.lr[0] <= draw.lr <= near.lr[1]
        assert near.alpha[0] <= draw.alpha <= near.alpha[1]
        assert near.beta[0] <= draw.beta <= near.beta[1]


def test_a_space_has_a_json_form() -> None:
    space = Space((16,), beta=(-1, 2))
    assert Space.from_json(space.to_json()) == space
    assert Space(alpha=(0, 1)).to_json() == Space(alpha=(-0.0, 1.0)).to_json()
    assert str(Space(alpha=(-0.0, -0.0)).alpha) == "(0.0, 0.0)"
    with pytest.raises(SettingsError, match=r"space: \['gamma'\] are not the fields"):
        Space.from_json({"gamma": [0, 1]})
    with pytest.raises(SettingsError, match="space: 3 are not the fields"):
        Space.from_json(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_sizes": ()}, "batch_sizes=(): the space is empty; list at least one batch size"),
        ({"batch_sizes": 32}, "batch_sizes=32: must be a list or tuple"),
        ({"batch_sizes": (32, 0)}, "batch_sizes=0: must be a whole number of at least 1"),
        ({"batch_sizes": (32, 32)}, "batch_sizes=(32, 32): one is listed twice"),
        ({"lr": (1e-2, 1e-4)}, "lr=(0.01, 0.0001): the range is empty; give the least value first: (0.0001, 0.01)"),
        ({"lr": (0.0, 1e-2)}, "lr=0.0: must be a finite number above 0"),
        ({"lr": 1e-3}, "lr=0.001: must be a list or tuple"),
        ({"alpha": (0.0, 0.5, 1.0)}, "alpha=(0.0, 0.5, 1.0): must be a least and a greatest value"),
        ({"alpha": (1, 0)}, "alpha=(1, 0): the range is empty"),
        ({"beta": (0, math.inf)}, "beta=inf: must be a finite number"),
        ({"beta": ("0", 1)}, "beta='0': must be a finite number"),
    ],
)
def test_bad_spaces_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Space(**change)
    assert str(caught.value).startswith(message)


def test_bad_numbers_of_draws_are_refused() -> None:
    with pytest.raises(SettingsError, match="count=0: must be a whole number of at least 1"):
        Space().draws(0, 0)
    with pytest.raises(SettingsError, match="seed=-1: must be a whole number of at least 0"):
        Space().draws(1, -1)
