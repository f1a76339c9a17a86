"""Every mutant is failed by the law that it targets, and the script in the failure shows it too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from relucheck.activations.kinks import Activation
from relucheck.gate.config import GateConfig
from relucheck.gate.discovery import discover
from relucheck.gate.isolation.guard import preserved_state
from relucheck.gate.laws import LAWS
from relucheck.gate.run import Gate
from relucheck.gate.verdicts import Item
from tests.faults import mutants

FAST = [mutant for mutant in mutants.MUTANTS if not mutant.slow]


def activation(name: str) -> Activation:
    """The mutant as the gate finds it in its file, so that scripts can reach it; its name may end in an argument's."""
    name = name.partition("[")[0]
    if any(declared.name == name for declared in mutants.DECLARED):
        module, attribute = mutants, "DECLARED"
    else:
        module, attribute = next(source for source in mutants.SOURCES if hasattr(source, name)), name
    file = Path(module.__file__)
    finding = discover(f"{file.name}:{attribute}", root=file.parent)
    assert not finding.error, finding.error
    (found,) = (found for found in finding.activations if found.name == name)
    return found


def verdict(mutant: mutants.Mutant):
    # compilation alone takes most of the usual minute where other work goes on
    limit = 600.0 if mutant.slow else GateConfig().time_limit
    chosen = GateConfig(dtypes=(mutant.dtype,), laws=(mutant.law,), convention=mutant.convention, time_limit=limit)
    gate = Gate(chosen, [activation(mutant.name)])
    return gate.run(Item(mutant.name, mutant.law, mutant.dtype))


def ids(chosen: list[mutants.Mutant]) -> list[str]:
    return [f"{mutant.name}-{mutant.law}-{mutant.dtype}" for mutant in chosen]


@pytest.mark.parametrize("mutant", FAST, ids=ids(FAST))
def test_law_fails_mutant_and_script_reproduces(mutant):
    result = verdict(mutant)
    assert result.outcome == "failed", result
    assert f"{mutant.name}/{mutant.law}/{mutant.dtype}" in result.message
    script = (result.counterexample or {}).get("script", "")
    if mutant.law == "declared_kinks" and not script:
        return  # a kink that does not exist has no line to run
    assert script, result.message
    assert len(script.split("\n")) <= 13
    with pytest.raises((AssertionError, RuntimeError)), preserved_state():
        exec(compile(script, "<script>", "exec"), {"__name__": "script"})


def test_scripts_pass_once_the_fault_is_gone():
    # the same script with torch's own ReLU in the mutant's place must not raise: scripts can tell the two apart
    for name, law in (("injected_relu", "chain_rule"), ("subgradient_two", "subgradient"), ("tail_closed", "position")):
        result = verdict(mutants.Mutant(name, law))
        lines = [
            "act = torch.nn.ReLU()" if line.startswith("act = ") else line
            for line in result.counterexample["script"].split("\n")
        ]
        exec("\n".join(lines), {})


SLOW = [mutant for mutant in mutants.MUTANTS if mutant.slow]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", SLOW, ids=ids(SLOW))
def test_compile_law_fails_its_mutant(mutant):
    result = verdict(mutant)
    assert result.outcome == "failed", result
    assert "torch.compile and eager mode differ" in result.message


def test_compile_law_looks_at_modules():
    # a compiled module has no truth value: the law once took that for "not supported"
    gate = Gate(GateConfig(dtypes=("bfloat16",), laws=("compile_agreement",), compile=True), [torch.nn.Hardtanh(-0.7, 0.7)])
    (result,) = map(gate.run, gate.items())
    assert result.outcome == "passed", result


def test_compile_law_undoes_a_compiler_that_flushes_subnormal_numbers(monkeypatch, subnormal_numbers):
    # as torch 2.4's inductor does when it loads its first kernel
    def compile(f, **_):
        loaded = []

        def compiled(x):
            if not loaded:
                loaded.append(torch.set_flush_denormal(True))
            return f(x)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    gate = Gate(GateConfig(dtypes=("float32",), laws=("compile_agreement",), compile=True), [torch.nn.ReLU()])
    (result,) = map(gate.run, gate.items())
    assert result.outcome == "passed", result
    assert torch.nextafter(torch.zeros(1), torch.ones(1)) * 1 > 0


def test_every_law_has_a_mutant():
    # infinities never fail anything: they are reported
    assert {mutant.law for mutant in mutants.MUTANTS} == set(LAWS) - {"infinities"}


def test_there_are_forty_of_different_kinds():
    assert len({mutant.name for mutant in mutants.MUTANTS}) >= 40


def test_surrogate_turns_the_derivative_laws_off_and_no_other():
    for name, law, outcome in (
        ("silu_without_second_term", "derivative", "skipped"),
        ("subgradient_two", "subgradient", "skipped"),
        ("injected_relu", "chain_rule", "failed"),
        ("mean_of_gradient", "locality", "failed"),
    ):
        surrogate = dataclasses.replace(activation(name), surrogate=True)
        gate = Gate(GateConfig(dtypes=("float32",), laws=(law,)), [surrogate])
        assert gate.run(Item(name, law, "float32")).outcome == outcome


def test_of_two_equal_spellings_only_the_wrong_one_is_blamed_off_the_kinks():
    # both are silu; one has a wrong derivative at 0, where there is no kink
    wrong, right = activation("wrong_at_smooth_zero"), Activation("right", lambda: torch.nn.functional.silu)
    gate = Gate(GateConfig(dtypes=("float32",), laws=("equal_spellings",)), [wrong, right])
    assert {result.activation: result.outcome for result in map(gate.run, gate.items())} == {
        "wrong_at_smooth_zero": "failed",
        "right": "passed",
    }
