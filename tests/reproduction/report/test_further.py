"""E8's section on made-up results: differences taken apart, published runs beside ours, and verdicts at will."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from relucheck.reproduction.experiments.searches.further import E8
from relucheck.reproduction.report.conclusion import conclusion
from relucheck.reproduction.report.further import contrasts, draw, repeated, sections
from relucheck.reproduction.report.nudges.effects import effects
from relucheck.reproduction.report.summary import Reproduction, analyse
from relucheck.results.tables import render
from relucheck.training.members import Member
from relucheck.training.settings import nudged
from tests.helpers import made_up
from tests.helpers.invariants import png_size

ROUNDED = ("mlp-default-bfloat16-rounded", "mlp-custom-bfloat16-rounded", "mobilenet-bfloat16-rounded")
#: The accuracy of a member in a comparison.
Accuracy = Callable[[str, Member], float]


def _noise(member: Member, place: int) -> float:
    """A small number that differs between seeds and members, the same in each call; a control has its reference's."""
    which = f"{member.seed} {member.s} {member.rule} {member.nudge} {place}"
    return random.Random(which).gauss(0, 0.0003)


def _as_published(name: str, member: Member) -> float:
    """The configuration costs nothing, the injected rule what is published, and the chain rule nothing."""
    base = 0.9542 if name.startswith("mobilenet") else 0.9714
    cost = (0.0225 if name.startswith("mobilenet") else 0.0346) * (member.rule == "injected")
    return base - cost + _noise(member, len(name))


def _configured(name: str, member: Member) -> float:
    """The seeded fault of the publication: all of the MLP's difference comes from the configuration."""
    return 0.9714 - 0.0346 * name.startswith("mlp-custom") + _noise(member, len(name))


def _made(
    accuracy: Accuracy, scale: str = "full", names: tuple[str, ...] = ROUNDED, void: str = "", nudges: bool = False
) -> Reproduction:
    runs = []
    for comparison in E8.comparisons(scale, names):
        name = comparison.name
        result = made_up.result(
            comparison.settings,
            accuracy=lambda member, name=name: accuracy(name, member),  # type: ignore[misc]
            void="the control differs" if name == void else None,
        )
        for member in result.members:  # the made-up curve rises to what is asked for
            for place, epoch in enumerate(member.epochs, 1):
                epoch.test_accuracy = accuracy(name, member.member) - 0.1 / place + 0.1 / len(member.epochs)
        runs.append((comparison, result))
    beside = {
        comparison.name: made_up.result(
            nudged(comparison.settings), accuracy=lambda member, name=comparison.name: accuracy(name, member) - 0.0001
        )
        for comparison, _ in runs
    }
    found = tuple(effects(runs, beside)) if nudges else ()
    return Reproduction(E8, scale, Path("folder"), tuple(runs), cells=tuple(analyse(runs)), effects=found)


def _by_name(made: Reproduction) -> dict[tuple[str, str], tuple[float, str]]:
    return {
        (one.network, one.named): (round(one.found.difference.mean or 0.0, 1), one.found.verdict) for one in contrasts(made)
    }


def test_the_published_difference_is_the_sum_of_configuration_and_subgradients() -> None:
    found = {(one.network, one.named): one.found.difference.mean for one in contrasts(_made(_as_published))}
    as_published = found["MLP", "as published: custom, injected, less default, (0, 0)"]
    configuration = found["MLP", "configuration: custom less default, both (0, 0)"]
    subgradients = found["MLP", "subgradients: injected less (0, 0), in custom"]
    assert as_published is not None
    assert configuration is not None
    assert subgradients is not None
    assert as_published == pytest.approx(configuration + subgradients, abs=1e-9)


def test_an_effect_of_the_rule_is_told_from_one_of_the_configuration() -> None:
    """Two worlds with the same published difference, and opposite verdicts on what it comes from."""
    rule, configured = _by_name(_made(_as_published)), _by_name(_made(_configured))
    as_published = "MLP", "as published: custom, injected, less default, (0, 0)"
    configuration = "MLP", "configuration: custom less default, both (0, 0)"
    injected, chain = (("MLP", f"subgradients: {rule} less (0, 0), in custom") for rule in ("injected", "chain"))
    assert rule[as_published] == configured[as_published] == (-3.5, "differs")
    assert (rule[configuration][1], configured[configuration]) == ("equivalent", (-3.5, "differs"))
    assert (rule[injected], configured[injected][1]) == ((-3.5, "differs"), "equivalent")
    assert rule[chain][1] == configured[chain][1] == "equivalent"
    assert rule["MobileNet", "subgradients: injected less (0, 0)"] == (-2.3, "differs")


def test_one_seed_decides_nothing() -> None:
    made = _made(_as_published, "cpu", ("mlp-default-float32", "mlp-custom-float32"))
    assert {one.found.verdict for one in contrasts(made)} == {"undecided"}
    assert {one.said for one in repeated(made)} == {"-"}


def test_void_and_missing_configurations_are_left_out() -> None:
    void = contrasts(_made(_as_published, void="mlp-default-bfloat16-rounded"))
    alone = contrasts(_made(_as_published, names=("mlp-custom-bfloat16-rounded", "mobilenet-bfloat16-rounded")))
    assert [one.named for one in void] == [one.named for one in alone]
    assert not any(one.named.startswith(("as published", "configuration")) for one in void)
    assert sections(_made(_as_published, names=ROUNDED[:1], void=ROUNDED[0])) == ()


def test_published_runs_are_inside_or_outside_of_what_seeds_give() -> None:
    inside = {(one.run.network, one.run.member): one.said for one in repeated(_made(_as_published))}
    assert set(inside.values()) == {"inside"}
    assert len(inside) == 4
    outside = {(one.run.network, one.run.member): one.said for one in repeated(_made(lambda name, m: 0.9 + _noise(m, 1)))}
    assert set(outside.values()) == {"outside"}


def test_shorter_runs_have_no_published_counterpart() -> None:
    made = _made(_as_published, "cpu", ("mobilenet-bfloat16-rounded",))
    assert repeated(made) == []
    assert {one.published for one in contrasts(made)} == {None}
    assert {one.published for one in contrasts(_made(_as_published)) if one.network != "MLP"} == {None, 93.17 - 95.42}


def test_the_section_says_both_comparisons() -> None:
    (section,) = sections(_made(_as_published, nudges=True))
    said = " ".join(section.sentences)
    assert (
        "MLP, bfloat16 emulated (rounded): compared as published, the custom run differs from the default one by -3" in said
    )
    assert "(differs; published: -3.46)" in said
    assert "MobileNet, bfloat16 emulated (rounded): with all else equal, tuned subgradients change" in said
    text = "\n".join(section.markdown())
    assert text.count("(differs) |") == 3, "beyond nudges: injected, in both configurations and in the MobileNet"
    shown = render(*section.terminal(), width=80, color=False)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def test_the_conclusion_does_not_say_that_nothing_published_can_be_tested() -> None:
    """The section has just compared the published runs."""
    made = _made(_as_published)
    made = dataclasses.replace(made, sections=sections(made))
    said = conclusion(made)
    assert any("published: -3.46" in one for one in said)
    assert not any("no published figure" in one for one in said)
    assert any(one.endswith("recorded steps.") for one in said), "the control stays"


def test_the_figure_has_a_panel_for_each_network_and_arithmetic(tmp_path: Path) -> None:
    (path,) = draw(_made(_as_published), tmp_path)
    assert png_size(path) > (700, 400)
    assert draw(Reproduction(E8, "full", tmp_path), tmp_path) == []
