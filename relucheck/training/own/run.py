"""Train a user's model with s = 0, its control, s = 1 and nudges, resuming where it stopped."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

from relucheck.bifurcation.forward.state import reproducible
from relucheck.results.store import Store
from relucheck.training.engine import enough_memory, origin_of, without_fill
from relucheck.training.forking import Forking
from relucheck.training.model import Clock
from relucheck.training.own.objective import OwnObjective
from relucheck.training.own.task import OwnBatches, OwnSettings, Task
from relucheck.training.results.result import SeedResult
from relucheck.training.results.seed_store import finished, keep
from relucheck.training.sitting import Sitting, group_name
from relucheck.work import Report


def train_own(task: Task, settings: OwnSettings, report: Report, folder: Path | None = None) -> SeedResult:
    """Train the members of a comparison on a user's model.

    Args:
        task: what is trained.
        settings: of the comparison.
        report: called with a number of steps and a line of text.
        folder: where checkpoints and the result are kept, so that the same call goes on where an interrupted one stopped;
            None keeps nothing. A checkpoint of another device or other versions is discarded.

    Returns:
        The results of all members, with ``void`` set if the control differed.

    Raises:
        ModelError: as ``OwnObjective.loss``, and for an operation that is not deterministic on the device.
        DeviceError: the device has too little memory.
        relucheck.results.store.StoreError: the folder cannot be written, or belongs to another model or other settings.
        relucheck.training.sitting.Interrupted: on control-C.
    """
    if folder is not None:
        known = finished(settings, folder, Forking.name)
        if known:
            report(settings.steps, "")
            return known[settings.seed]
    store = None if folder is None else Store(folder)
    if store is not None:
        report(store.steps(group_name(settings)), "")
    device = next(task.model.parameters()).device
    clock = Clock(settings.seed)
    with contextlib.ExitStack() as stack:
        if not settings.arithmetic.mixture:  # the user's switches, which are left as they are
            stack.enter_context(settings.arithmetic.active())
        for context in (reproducible(device), without_fill()):
            stack.enter_context(context)
        stack.enter_context(enough_memory(settings, type(task.model).__name__, device))
        run = Forking(
            settings,
            settings.seed,
            OwnBatches(task.batches, settings),
            device,
            lambda: copy.deepcopy(task.model),
            lambda model: OwnObjective(task, model, clock),
            clock,
        )
        origin = origin_of(device, Forking.name)
        result = Sitting(settings, run, settings.per_epoch, origin, store, report, restart=True).run()[settings.seed]
    if folder is not None:
        keep(settings, folder, Forking.name, {settings.seed: result})
    return result
