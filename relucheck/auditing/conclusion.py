"""The conclusion of an audit in one sentence, and what each finding of a training says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from relucheck.auditing.trained import RELEVANT, Trained
from relucheck.results.tables import counted, listed

if TYPE_CHECKING:
    from relucheck.auditing.result import Audit, InArithmetic

_NAMED: Final = 2  # how many faulty activations the sentence names


def concluded(audit: Audit) -> str:
    """The conclusion in one sentence.

    A fault in the wiring comes first, then what was found in each arithmetic, then what the audit did not see.
    """
    clauses = []
    if audit.faults:
        names = [f"'{wire.site}' ({wire.verdict})" for wire in audit.faults[:_NAMED]]
        more = [f"{len(audit.faults) - _NAMED} more"] if len(audit.faults) > _NAMED else []
        clauses.append(f"the wiring is faulty at {listed([*names, *more])}")
    where = "where it arrives, " if audit.unserved else ""
    clauses += [f"in {part.arithmetic} {where}{_of(part)}" for part in audit.parts]
    if audit.unreached:
        calls = counted(sum(one.count for one in audit.unreached), "call")
        clauses.append(f"kinks out of reach ({calls}) keep torch's gradient and were not counted")
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _of(part: InArithmetic) -> str:
    trained, examined = part.trained, part.examined
    if trained is not None:
        return _trained(trained)
    if not examined.hits:
        return f"none of {_within_reach(examined.activations)} was exactly at a kink, and nothing was trained"
    differ = sum(batch.outcome != "agree" for batch in examined.batches)
    return f"the gradients differ on {differ} of {len(examined.batches)} mini-batches, and nothing was trained"


def _trained(trained: Trained) -> str:
    reference, other = trained.run("s = 0"), trained.run("s = 1")
    seen = f"{_within_reach(trained.activations)} in {trained.steps} steps"
    if trained.finding == "void":
        return f"nothing can be concluded: {trained.void}, so the model or the loss is not deterministic"
    if trained.finding == "diverged":
        return f"nothing can be concluded: training with s = 0 {reference.outcome}"
    if trained.finding == "no hits":
        return f"s cannot matter here: none of {seen} was exactly at a kink"
    if trained.finding == "no effect":
        return f"s makes no difference here: {reference.hits:,} of {seen} were exactly at a kink, and no gradient changed"
    if other.loss is None or reference.loss is None:
        known = "s matters here" if trained.finding == "matters" else "s cannot be told from chaos"
        return f"{known}: training with s = 1 {other.outcome}, and with s = 0 it did not"
    change = f"by {percent(other.loss - reference.loss, reference.loss)}"
    if trained.loss is None or trained.distance is None:
        return (
            f"s = 1 changes the training loss {change}, and it is open whether a change of one bit does as much: fewer "
            "than two nudges changed a gradient"
        )
    nudges = percent(max(map(abs, trained.loss.nudges)), reference.loss).removeprefix("+")
    return {
        "matters": f"s matters here: s = 1 changes the training loss {change}, and a change of one bit by {nudges} at most",
        "small": f"s hardly matters here: s = 1 changes the training loss {change}, more than a change of one bit does, "
        f"but by less than {RELEVANT:.1%}",
        "weights only": "s does not matter for the loss here: it stays within the nudges' band, though s = 1 moves the "
        "weights further than a change of one bit does",
        "within the band": "s does not matter here beyond chaos: s = 1 does no more than a change of one bit does",
    }[trained.finding]


def _within_reach(activations: int) -> str:
    return f"{counted(activations, 'pre-activation')} within reach"


def percent(change: float, whole: float) -> str:
    """A change in % of the whole, with its sign."""
    return f"{100 * change / abs(whole):+.2g} %" if whole else f"{change:+.2g}"
