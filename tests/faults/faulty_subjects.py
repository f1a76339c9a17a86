"""Seeded faults: each is relucheck's semantics with one thing wrong, and names the properties that must find it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relucheck.activations.rules import ModelSubgradient
from relucheck.bifurcation.compare import Backprops
from relucheck.networks.examples import SeededDropout
from relucheck.networks.network import ActivationName
from relucheck.numerics.bits import neighbour
from tests.properties.subjects import Faulty, FaultySubject, Gradients, Subject


class DroppedCotangent(Faulty):
    """The published fault: s itself is the gradient at the kink, where the chain rule has s times the cotangent."""

    def product(self, s: float, cotangent: Tensor) -> Tensor:
        return torch.full_like(cotangent, s)


class MaskFromOutput(Faulty):
    """A hit is where the *output* equals the kink: a saturated or dead region counts as hits."""

    def masks(self, x: Tensor, y: Tensor, ctx) -> list[Tensor]:  # type: ignore[no-untyped-def]
        return [y == at for at in self.kinks]


class HitsBelow(Faulty):
    """Hits are tested with <= instead of ==."""

    def masks(self, x: Tensor, y: Tensor, ctx) -> list[Tensor]:  # type: ignore[no-untyped-def]
        return [x <= at if at == 0 else x >= at for at in self.kinks]


class ReadAtConstruction(Faulty):
    """The subgradient is the one that was set when forward built the graph, not the one set when backward runs."""

    def settings(self, ctx) -> tuple[float, float]:  # type: ignore[no-untyped-def]
        return ctx.at_construction


class StaleMask(Faulty):
    """The hits of the first batch of a shape are kept and used for every later one."""

    def __init__(self, name: ActivationName, negative_slope: float) -> None:
        super().__init__(name, negative_slope)
        self.cache: dict[torch.Size, list[Tensor]] = {}

    def remembered(self, x: Tensor) -> list[Tensor]:
        return self.cache.setdefault(x.shape, super().remembered(x))

    def masks(self, x: Tensor, y: Tensor, ctx) -> list[Tensor]:  # type: ignore[no-untyped-def]
        return ctx.mask


class NarrowHits(Faulty):
    """Hits are tested after a cast to float16, where small pre-activations have become 0 and others 6."""

    def masks(self, x: Tensor, y: Tensor, ctx) -> list[Tensor]:  # type: ignore[no-untyped-def]
        return [x.half() == at for at in self.kinks]


class NarrowProduct(Faulty):
    """The product of subgradient and cotangent is rounded to bfloat16 on the way."""

    def product(self, s: float, cotangent: Tensor) -> Tensor:
        return (s * cotangent.bfloat16()).to(cotangent.dtype)


class NarrowForward(Faulty):
    """The forward is computed in another dtype than the input's."""

    def value(self, x: Tensor) -> Tensor:
        narrow = torch.bfloat16 if x.dtype != torch.bfloat16 else torch.float16
        return super().value(x.to(narrow)).to(x.dtype)


class ForwardKnowsS(Faulty):
    """The forward value at the kink depends on s, as a relaxed step function's would."""

    def value(self, x: Tensor) -> Tensor:
        return torch.where(x == 0, torch.full_like(x, self.setting[0] / 1024), super().value(x))


class MaskedProduct(Faulty):
    """The native part is a product with a 0/1 mask: right up to the signs of zeros."""

    def native(self, x: Tensor, cotangent: Tensor) -> Tensor:
        return super().native(x, torch.ones_like(cotangent)) * cotangent


class SquaredSubgradient(Faulty):
    """s squared: right for 0 and 1, the values that most people try."""

    def product(self, s: float, cotangent: Tensor) -> Tensor:
        return s * s * cotangent


class QuantisedCotangent(Faulty):
    """The cotangent is rounded to a whole number at hits: no longer linear in it."""

    def product(self, s: float, cotangent: Tensor) -> Tensor:
        return s * (cotangent / 2).round()


class Tolerant(Faulty):
    """A hit is whatever lies within 1/16 of the kink: an absolute tolerance, so that hits depend on the input's scale."""

    def masks(self, x: Tensor, y: Tensor, ctx) -> list[Tensor]:  # type: ignore[no-untyped-def]
        return [(x - at).abs() < 1 / 16 for at in self.kinks]


class FirstRowsOnly(Faulty):
    """Only the first 16 rows of a batch are looked at for hits, as a kernel with a wrong grid would."""

    def masks(self, x: Tensor, y: Tensor, ctx) -> list[Tensor]:  # type: ignore[no-untyped-def]
        masks = super().masks(x, y, ctx)
        for mask in masks:
            mask[16:] = False
        return masks


class Unsteady(Faulty):
    """The gradient at hits changes from call to call by one unit in the last place, as an unordered sum's does."""

    calls = 0

    def product(self, s: float, cotangent: Tensor) -> Tensor:
        Unsteady.calls += 1
        return neighbour(s * cotangent, Unsteady.calls % 2)


class _RecordsBelow(FaultySubject):
    """Reports every dead activation as a hit."""

    def recorded(self, z: Tensor, at: float) -> Tensor:
        return (z <= at if at == 0 else z >= at).nonzero()


class _RecordsNear(FaultySubject):
    """Reports what lies within 1/16 of the kink as a hit."""

    def recorded(self, z: Tensor, at: float) -> Tensor:
        return ((z - at).abs() < 1 / 16).nonzero()


class _RecordsFirstRows(FaultySubject):
    """Reports the hits of the first 16 rows."""

    def recorded(self, z: Tensor, at: float) -> Tensor:
        return (z[:16] == at).nonzero()


class _SharedMember(Subject):
    """Under vmap every member uses the first member's subgradient."""

    def members(self, models: Sequence[nn.Module], inputs: Tensor, cotangent: Tensor) -> Gradients:
        return super().members([models[0]] * len(models), inputs, cotangent)


class _FoldedConstant(Subject):
    """The compiler reads the subgradient once, when it compiles."""

    def compiled(
        self, model: nn.Module, inputs: Tensor, settings: Sequence[ModelSubgradient], cotangent: Tensor, backend: str
    ) -> list[Gradients]:
        return super().compiled(model, inputs, [settings[0]] * len(settings), cotangent, backend)


class _StaleCopy(Subject):
    """The setting goes to a copy of the model that nobody runs."""

    def backprops(
        self, model: nn.Module, inputs: Tensor, settings: Sequence[ModelSubgradient], cotangent: Tensor
    ) -> Backprops:
        return super().backprops(model, inputs, [settings[0]] * len(settings), cotangent)


class _FreshMasks(Subject):
    """Dropout draws another mask in every forward, so that two backwards are of two functions."""

    def set(self, model: nn.Module, setting: ModelSubgradient) -> None:
        for module in model.modules():
            if isinstance(module, SeededDropout):
                module.__class__ = nn.Dropout
        super().set(model, setting)


#: Each seeded fault, with the names of the properties that must find a counterexample to it.
FAULTS: dict[Subject, tuple[str, ...]] = {
    FaultySubject("cotangent dropped", DroppedCotangent): ("gradient_is_the_oracles", "linear_in_the_cotangent"),
    FaultySubject("mask from the output", MaskFromOutput): ("no_hit_agrees", "gradient_is_the_oracles"),
    FaultySubject("hits tested with <=", HitsBelow): ("no_hit_agrees", "gradient_is_the_oracles"),
    FaultySubject("read at construction", ReadAtConstruction): ("gradient_is_the_oracles", "dead_unit_differs_in_its_row"),
    FaultySubject("stale mask", StaleMask): ("control_is_identical",),
    FaultySubject("hits in a narrow dtype", NarrowHits): ("no_hit_agrees", "gradient_is_the_oracles"),
    FaultySubject("product in a narrow dtype", NarrowProduct): ("gradient_is_the_oracles", "affine_in_the_subgradient"),
    FaultySubject("forward in a narrow dtype", NarrowForward): ("forward_is_torchs",),
    FaultySubject("forward depends on s", ForwardKnowsS): ("forward_is_torchs",),
    FaultySubject("product with a mask", MaskedProduct): ("native_gradient_is_torchs",),
    FaultySubject("s squared", SquaredSubgradient): (
        "polynomial_in_the_subgradient",
        "affine_in_the_subgradient",
        "gradient_is_the_oracles",
    ),
    FaultySubject("cotangent rounded", QuantisedCotangent): ("linear_in_the_cotangent",),
    FaultySubject("absolute tolerance", Tolerant): ("no_hit_agrees", "gradient_is_the_oracles"),
    FaultySubject("first rows only", FirstRowsOnly): ("blocks_cover_the_batch",),
    FaultySubject("last bit unsteady", Unsteady): ("control_is_identical",),
    _RecordsBelow("hits reported with <="): ("hits_are_where_kinks_are",),
    _RecordsNear("hits reported with a tolerance"): ("hits_are_where_kinks_are", "scaling_keeps_hits"),
    _RecordsFirstRows("hits reported of the first rows"): ("blocks_cover_the_batch",),
    _SharedMember("one subgradient for all members"): ("members_agree",),
    _FoldedConstant("subgradient folded by the compiler"): ("compiled_agrees",),
    _FreshMasks("dropout masks drawn anew"): ("forward_is_torchs", "gradient_is_the_oracles"),
    _StaleCopy("setting goes to a copy"): ("gradient_is_the_oracles", "dead_unit_differs_in_its_row"),
}
