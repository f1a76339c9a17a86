"""The settings of a random search with ASHA: frozen data with a digest and a JSON form.

Nothing is computed here; ``relucheck.search.tuning`` runs what is described.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from relucheck.errors import SettingsError, instance, one_of, whole
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.search.space import Draw, Space
from relucheck.training.members import RULES, Member
from relucheck.training.settings import Optimiser, Settings

#: Version of the JSON form of ``Search``; raise it when a field changes.
SCHEMA: Final = 1
#: What ASHA can compare trials by: the share of the images held out that is classified correctly, or their mean loss.
METRICS: Final[tuple[str, ...]] = ("accuracy", "loss")
_FLOAT32: Final = Arithmetic.parse("float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Everything that decides the numbers of a search, except devices and versions.

    The order in which trials report decides which of them ASHA stops; with more than one trial at once it is not fixed.

    Attributes:
        network: what every trial trains.
        data: name of a data set, as for ``relucheck.data.load``.
        space: what trials are drawn from.
        trials: number of trials.
        epochs: number of epochs of a trial that is not stopped.
        arithmetic: in which trials compute, or its name.
        rule: what the gradient at a hit is, "chain" or "injected", see ``relucheck.training.members.Member``.
        seed: seed of the draws.
        train_samples: number of training images, the first ones, before some of them are held out.
        validation: share of the training images that each trial holds out, to be judged by.
        grace: number of epochs before which ASHA stops no trial.
        reduction: ASHA keeps one of so many trials at each of its rungs, which are the epochs ``grace``,
            ``grace * reduction``, ``grace * reduction**2`` and so on.
        metric: what trials are compared by, "accuracy" or "loss", both of the images held out.

    Raises:
        SettingsError: a value is out of range or of the wrong type, or the space draws a subgradient at 6 for a network
            whose activation has no kink there.
    """

    network: Network
    data: str
    space: Space = dataclasses.field(default_factory=Space)
    trials: int
    epochs: int
    arithmetic: Arithmetic = _FLOAT32
    rule: str = "chain"
    seed: int = 0
    train_samples: int
    validation: float = 0.2
    grace: int = 3
    reduction: int = 2
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        instance("network", self.network, Network, 'Network("mlp", (2000,), activation="relu6")')
        instance("space", self.space, Space, "Space()")
        arithmetic: Arithmetic | str = self.arithmetic
        if not isinstance(arithmetic, Arithmetic):
            object.__setattr__(self, "arithmetic", Arithmetic.parse(arithmetic))
        for name in ("trials", "epochs", "train_samples", "grace"):
            whole(name, getattr(self, name))
        whole("seed", self.seed, 0)
        whole("reduction", self.reduction, 2)
        one_of("rule", self.rule, RULES)
        one_of("metric", self.metric, METRICS)
        if self.validation is None:
            raise SettingsError("validation=None: trials are compared by the images that they hold out; use 0.2")
        if len(self.network.kinks) == 1 and self.space.beta != (0.0, 0.0):
            raise SettingsError(
                f"space.beta={self.space.beta!r}: {self.network.activation} has no kink at 6; use (0.0, 0.0), or a network "
                'with activation="relu6"'
            )
        object.__setattr__(self, "data", self.settings(self.draws[0]).data)  # checks the rest of the settings, too

    @functools.cached_property
    def draws(self) -> tuple[Draw, ...]:
        """The draws of all trials, in the order of their numbers."""
        return self.space.draws(self.trials, self.seed)

    @property
    def mode(self) -> Literal["max", "min"]:
        """Whether a large or a small value of the metric is good."""
        return "max" if self.metric == "accuracy" else "min"

    def member(self, draw: Draw) -> Member:
        """The member of a trial by which the trial is judged.

        It has the subgradients of the draw, under the rule of the search. With both at 0 it is the reference.
        """
        if draw.alpha == draw.beta == 0:
            return Member(draw.seed, 0.0)
        return Member(draw.seed, draw.alpha, self.rule, second=draw.beta if len(self.network.kinks) > 1 else None)

    def settings(self, draw: Draw) -> Settings:
        """The comparison that a trial trains.

        Its members are the reference with the subgradients (0, 0), the control and ``member(draw)``. Mini-batches are
        shuffled. The distance to the reference is recorded once in each epoch.
        """
        one = Settings(
            data=self.data,
            network=self.network,
            members=tuple(dict.fromkeys((Member(draw.seed, 0.0), Member(draw.seed, 0.0, control=True), self.member(draw)))),
            optimiser=Optimiser("adam", draw.lr, fused=False),  # torch's default kernels, which the published runs used
            arithmetic=self.arithmetic,
            epochs=self.epochs,
            batch_size=draw.batch_size,
            train_samples=self.train_samples,
            shuffle=True,
            validation=self.validation,
        )
        return dataclasses.replace(one, every=one.steps_of(one.trained(self.train_samples)))

    def to_json(self) -> dict[str, Any]:
        """The search as a JSON object, which ``from_json`` reads."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        network, space = self.network.to_json(), self.space.to_json()
        return {"schema": SCHEMA, **fields, "network": network, "space": space, "arithmetic": self.arithmetic.name}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Search:
        """Read what ``to_json`` wrote.

        Raises:
            SettingsError: the schema version is another, or a field is unknown, missing or invalid.
            ModelError: for a network that is none.
        """
        if not isinstance(content, Mapping):
            raise SettingsError(f"search: {content!r} is no JSON object; pass what Search.to_json wrote")
        if content.get("schema") != SCHEMA:
            raise SettingsError(
                f"search of schema {content.get('schema')!r}: this version of relucheck reads schema {SCHEMA}; run it again"
            )
        fields = {name: value for name, value in content.items() if name != "schema"}
        try:
            fields["network"] = Network.from_json(fields["network"])
            fields["space"] = Space.from_json(fields["space"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise SettingsError(f"search: {error}; pass what Search.to_json wrote") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON form, in hex; only equal searches have equal digests."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
