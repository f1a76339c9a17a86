"""``relucheck.audit``: does the subgradient at the kinks matter for this model?"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from relucheck.auditing.asked import (
    Asked,
    AuditError,
    Factory,
    checked_batches,
    checked_counts,
    checked_loss,
    optimiser_of,
    samples_of,
)
from relucheck.auditing.examined import computing, examine
from relucheck.auditing.result import Audit, InArithmetic
from relucheck.auditing.trained import Trained, summarised
from relucheck.bifurcation.wiring import Wire, probe_wiring
from relucheck.extras import require
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.devices import available, environment
from relucheck.results.progress import Progress
from relucheck.training.own.run import train_own
from relucheck.training.own.task import Loss, OptimiserChoice, OwnSettings, Task

#: The default numbers of training steps, and of mini-batches that are compared.
STEPS: Final = 200
COMPARED: Final = 4


def audit(
    model: nn.Module | Factory,
    batches: Any,
    *,
    loss: Loss | None = None,
    optimiser: OptimiserChoice | None = None,
    arithmetics: Sequence[str] = (),
    steps: int = STEPS,
    seed: int = 0,
    compared: int = COMPARED,
    samples: int | None = None,
    device: str | torch.device | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Audit:
    """Find out whether the subgradient s at the kinks matters for a model.

    The wiring is checked. On mini-batches, the gradients of s = 0 and s = 1 are compared, and hits are counted and
    predicted. Then the model is trained with s = 0, a control, s = 1 under the chain rule, and five nudges of s = 0. All of
    it is in training mode, and on copies: the model does not change. The numbers are those that ``probe_wiring``,
    ``compare``, ``outlook`` and ``train_own`` give when called one by one.

    Args:
        model: an eager module; or a function that builds one, without arguments or with the argument ``subgradient``. The
            latter makes it possible to check the model's parameter for the setting.
        batches: pairs of inputs and targets, as a list or a DataLoader. Inputs are as for ``relucheck.compare``. At most
            ``steps`` pairs are read, and kept. Training goes through them in passes, each in an order drawn from the seed.
        loss: a function from output and targets to a scalar; None means the mean cross-entropy of logits.
        optimiser: a function from the list of parameters to a ``torch.optim.Optimizer``, or a
            ``relucheck.training.settings.Optimiser``. None means Adam with torch's defaults.
        arithmetics: names of dtypes and other arithmetics, as ``Arithmetic.parse`` reads them, such as "bfloat16" or
            "mixed bfloat16". Without a name, the model is audited as it is.
        steps: number of training steps, a multiple of 10; 0 trains nothing.
        seed: of the initialisation if ``model`` is a function, of the order of mini-batches, of random numbers in the
            forward, and of the nudges.
        compared: the number of mini-batches, from the first on, on which gradients are compared.
        samples: the number of samples of a training step for which hits are predicted; None means that of a mini-batch.
        device: where the model runs, "cpu" or "cuda"; None means where it is.
        folder: where checkpoints and results of the training are kept; the same call goes on where an interrupted one
            stopped. None keeps nothing.
        progress: whether to show progress on standard error.

    Returns:
        The audit. Printed, it is a report that begins with a conclusion of one sentence.

    Raises:
        AuditError: the model, the mini-batches, the loss or the optimiser are of a wrong kind or raise an error.
        ModelError: as ``relucheck.compare``: the model is compiled or scripted, calls no activation with a kink, or
            accumulates gradients out of sight; and for a model that differentiates in its forward.
        ControlError: two equal backwards of the model differ.
        DeviceError: the device is not available, or has too little memory.
        relucheck.errors.SettingsError: an arithmetic or a number is not possible.
        relucheck.extras.MissingExtraError: scipy is not installed.
        relucheck.results.store.StoreError: the folder cannot be used, or holds results of another audit.
        relucheck.training.sitting.Interrupted: on control-C while training.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(2)]
        >>> print(audit(model, batches, steps=10, progress=False).conclusion)
        In float32 s cannot matter here: none of 640 pre-activations within reach in 10 steps was exactly at a kink.
    """
    require("an audit", "scipy")
    checked_counts(steps, compared, samples, seed)
    if isinstance(arithmetics, str):
        raise AuditError(f"arithmetics={arithmetics!r}: must be a list of names, for example [{arithmetics!r}]")
    wanted: list[Arithmetic | None] = [Arithmetic.parse(name) for name in dict.fromkeys(arithmetics)] or [None]
    place = None if device is None else available(device)
    asked = Asked(model, checked_batches(batches, max(steps, compared), seed), loss, optimiser, seed, place)
    tasks = [(asked.task(arithmetic), arithmetic) for arithmetic in wanted]
    planned = [(task, arithmetic or Arithmetic.of(task.model)) for task, arithmetic in tasks]
    few = min(compared, len(asked.batches))
    parts = []
    with Progress(1 + len(planned) * (few + steps), "audit", enabled=progress) as shown:
        settings = [_settings(asked, task, arithmetic, steps) for task, arithmetic in planned]
        wires = _wires(asked, planned[0][0], planned[0][1])
        shown.report(1, "wiring")
        for (task, arithmetic), chosen in zip(planned, settings, strict=True):
            examined = examine(asked, task, arithmetic, task.batches[:few], shown.report)
            trained = _trained(task, chosen, shown.report, None if folder is None else Path(folder))
            parts.append(InArithmetic(arithmetic.name, optimiser_of(task)[0], examined, trained))
    first = planned[0][0].model
    here = samples_of(asked.batches[0])
    return Audit(
        asked.name,
        sum(parameter.numel() for parameter in first.parameters()),
        wires,
        tuple(parts),
        len(asked.batches),
        here,
        asked.loss_name,
        steps,
        seed,
        here if samples is None else samples,
        environment(next(first.parameters()).device).to_json(),
    )


def _settings(asked: Asked, task: Task, arithmetic: Arithmetic, steps: int) -> OwnSettings | None:
    """The settings of the training; None if there is none. The loss is tried in either case."""
    with computing(arithmetic, next(task.model.parameters()).device):
        first = checked_loss(task, asked.seed)
    if not steps:
        return None
    identity = {
        "model": asked.name,
        "loss": asked.loss_name,
        "first_loss": first.hex(),
        "optimiser": optimiser_of(task)[1],
        "digest": task.digest(),
    }
    return OwnSettings(asked.seed, steps, arithmetic, identity)


def _wires(asked: Asked, task: Task, arithmetic: Arithmetic) -> tuple[Wire, ...]:
    """The wiring on the first mini-batch: of the model, or of what the function builds with each subgradient."""
    device = next(task.model.parameters()).device

    def build(subgradient: float) -> nn.Module:
        return arithmetic.apply(asked.built(subgradient)).train()

    with computing(arithmetic, device):
        return probe_wiring(build if asked.takes_subgradient else task.model, task.batches[0][0])


def _trained(
    task: Task, settings: OwnSettings | None, report: Callable[[int, str], None], folder: Path | None
) -> Trained | None:
    if settings is None:
        return None
    place = None if folder is None else folder / re.sub(r"[^a-z0-9]+", "-", settings.arithmetic.name.lower()).strip("-")
    return summarised(settings, train_own(task, settings, report, place))
