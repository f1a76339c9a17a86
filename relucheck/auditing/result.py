"""The result of an audit: one object, from which text, Markdown and JSON are made."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

from relucheck.auditing.conclusion import concluded
from relucheck.auditing.examined import Examined, Unreached
from relucheck.auditing.report import markdown, shown
from relucheck.auditing.trained import Trained
from relucheck.bifurcation.wiring import Wire
from relucheck.results.tables import render

#: The version of the JSON format.
SCHEMA: Final = 1


@dataclasses.dataclass(frozen=True)
class InArithmetic:
    """What was found in one arithmetic.

    Attributes:
        arithmetic: its name.
        optimiser: of the training, in words.
        examined: hits, comparisons and predictions on mini-batches.
        trained: the nudge comparison; None if nothing was trained.
    """

    arithmetic: str
    optimiser: str
    examined: Examined
    trained: Trained | None


@dataclasses.dataclass(frozen=True)
class Audit:
    """The result of ``relucheck.audit``. ``str`` gives the report of a terminal of 80 columns.

    Attributes:
        model: the class of the model, or the name of the function that builds it.
        parameters: the number of its parameters, as scalars.
        wires: the wiring of each activation, as ``relucheck.bifurcation.wiring.probe_wiring`` returns it.
        parts: one entry for each arithmetic.
        batches: the number of mini-batches of a pass.
        batch_samples: the number of samples of the first mini-batch.
        loss: the loss, in words.
        steps: the number of training steps.
        seed: of the audit.
        samples: the number of samples of a training step for which hits are predicted.
        environment: device, processor and versions.
    """

    model: str
    parameters: int
    wires: tuple[Wire, ...]
    parts: tuple[InArithmetic, ...]
    batches: int
    batch_samples: int
    loss: str
    steps: int
    seed: int
    samples: int
    environment: dict[str, Any]

    @property
    def faults(self) -> tuple[Wire, ...]:
        """The activations with a fault in the wiring: they ignore a setting or follow a wrong rule.

        Activations that take no setting, such as calls of ``F.relu``, are no fault.
        """
        return tuple(wire for wire in self.wires if wire.verdict in ("ignores", "wrong rule"))

    @property
    def unserved(self) -> tuple[Wire, ...]:
        """The activations with torch's or their own gradient in every run of the audit.

        They do not answer to a setting, and the audit does not see their calls, as of an activation written out.
        """
        sites = {layer.site for part in self.parts for layer in part.examined.layers}
        return tuple(
            wire
            for wire in self.wires
            if wire.verdict != "answers"
            and not any(site == wire.site or site.startswith(f"{wire.site}.") for site in sites)
        )

    @property
    def unreached(self) -> tuple[Unreached, ...]:
        """The functions with kinks out of reach in the first arithmetic.

        They keep torch's gradient in every run.
        """
        return self.parts[0].examined.unreached

    @property
    def void(self) -> bool:
        """Whether the control of a training differed."""
        return any(part.trained is not None and part.trained.void is not None for part in self.parts)

    @property
    def failed(self) -> bool:
        """Whether there is a fault in the wiring, or a control differed."""
        return bool(self.faults) or self.void

    @property
    def conclusion(self) -> str:
        """The conclusion in one sentence."""
        return concluded(self)

    def to_json(self) -> dict[str, Any]:
        """The audit as a JSON object."""
        return {"schema": SCHEMA, "conclusion": self.conclusion, "failed": self.failed, **dataclasses.asdict(self)}

    def json(self) -> str:
        """The audit as JSON text."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def markdown(self) -> str:
        """The report as Markdown."""
        return markdown(self)

    def __str__(self) -> str:
        return render(*shown(self), width=80, color=False)
