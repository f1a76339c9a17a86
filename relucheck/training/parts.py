"""The parts of a training comparison's settings: optimiser, precision, member; frozen, refused where they cannot be run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import torch

from relucheck.errors import SettingsError, number, one_of, truth, whole
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.dtypes import as_dtype, dtype_name
from relucheck.numerics.emulation import KINDS, Emulation

OPTIMISERS: Final[tuple[str, ...]] = ("adam", "sgd")
RULES: Final[tuple[str, ...]] = ("chain", "injected")
_MIXED: Final = ("bfloat16", "float16")
_MOST_SEEDS: Final = 2**31


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """torch's own Adam (betas 0.9 and 0.999, no weight decay) or SGD.

    Attributes:
        name: "adam" or "sgd".
        lr: learning rate.
        eps: Adam's: 1e-8 rounds to 0 in float16, which without ``fused`` makes 0 / 0 where a gradient is 0.
        momentum: SGD's.
        fused: torch's fused kernel, which updates 16-bit parameters in float32 and rounds once. False: torch's own
            default, which rounds after every operation, as published runs did. In float32 and float64 the two differ by
            rounding only; the fused one takes half the time or less.
    """

    name: str = "adam"
    lr: float = 1e-3
    eps: float = 1e-8
    momentum: float = 0.0
    fused: bool = False

    def __post_init__(self) -> None:
        one_of("optimiser", self.name, OPTIMISERS)
        number("lr", self.lr, above=0)
        number("eps", self.eps, least=0)
        number("momentum", self.momentum, least=0)
        if self.name == "adam" and self.momentum:
            raise SettingsError(f"momentum={self.momentum!r}: Adam has none; use 0.0 or the optimiser sgd")
        truth("fused", self.fused)

    @property
    def label(self) -> str:
        """In words: "adam, lr 0.001, eps 1e-08", "sgd, lr 0.1, momentum 0.9, fused"."""
        own = f", eps {self.eps:g}" if self.name == "adam" else f", momentum {self.momentum:g}" if self.momentum else ""
        return f"{self.name}, lr {self.lr:.6g}{own}" + ", fused" * self.fused


@dataclasses.dataclass(frozen=True)
class Precision:
    """The arithmetic of a comparison as data.

    Attributes:
        dtype: of parameters, a name that :func:`relucheck.numerics.dtypes.as_dtype` knows.
        mixed: "bfloat16" or "float16": autocast to it, weights in float32, for float16 with a gradient scaler; or None.
        emulation: "rounded", "product", "split-k N" or "tf32" (:mod:`relucheck.numerics.emulation`); None: the device's
            own.
        strict: on CUDA neither TF32 nor reduced-precision reductions; otherwise PyTorch's defaults.
        tf32: on CUDA float32 products in TF32 (the switch that users set, which PyTorch leaves off).
    """

    dtype: str
    mixed: str | None = None
    emulation: str | None = None
    strict: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        for name in ("strict", "tf32"):
            truth(name, getattr(self, name))
        object.__setattr__(self, "dtype", dtype_name(as_dtype(self.dtype)))
        if self.mixed is not None:
            one_of("mixed", self.mixed, _MIXED)
            if self.dtype != "float32":
                raise SettingsError(f"mixed={self.mixed!r} with dtype {self.dtype}: weights are float32 in mixed precision")
            if self.emulation is not None:
                raise SettingsError(f"mixed={self.mixed!r} with emulation {self.emulation!r}: choose one of the two")
        if self.strict and self.tf32:
            raise SettingsError("strict=True with tf32=True: strict means no TF32; choose one of the two")
        self.emulated()  # raises for what is no emulation

    def emulated(self) -> Emulation | None:
        """The emulation that :attr:`emulation` names.

        Raises:
            SettingsError: for a name that is none. EmulationError: for one that does not fit the dtype.
        """
        if self.emulation is None:
            return None
        kind, _, parts = self.emulation.partition(" ") if isinstance(self.emulation, str) else ("", "", "")
        if kind not in KINDS or (parts and not parts.isdecimal()):
            raise SettingsError(
                f"emulation={self.emulation!r}: must be one of {', '.join(KINDS)}, and split-k needs a number of parts: "
                "'split-k 4'"
            )
        return Emulation(as_dtype(self.dtype), kind, int(parts or 1))  # type: ignore[arg-type]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of parameters."""
        return as_dtype(self.dtype)

    def alone_on(self, device: str) -> bool:
        """Whether stacked members' products are made one member at a time on a kind of device: 16-bit ones on CUDA.

        Batched 16-bit GEMMs heed no switch there, see :mod:`relucheck.training.stacked`.
        """
        narrow = self.mixed is not None or (self.torch_dtype.itemsize == 2 and self.emulation is None)
        return device == "cuda" and narrow

    @property
    def scaled(self) -> bool:
        """Whether a gradient scaler multiplies the loss, and divides the gradients by as much."""
        return self.mixed == "float16"

    def rule_name(self, rule: str) -> str:
        """How tables label a rule: "injected / loss scale" where the subgradient that was injected is divided by it."""
        return "injected / loss scale" if rule == "injected" and self.scaled else rule

    @property
    def arithmetic(self) -> Arithmetic:
        """The process's switches: strict, or PyTorch's defaults with or without TF32."""
        if self.strict:
            return Arithmetic.strict(self.torch_dtype)
        return Arithmetic(self.torch_dtype, tf32=self.tf32)

    @property
    def name(self) -> str:
        """How tables label it: "bfloat16", "mixed float16", "bfloat16 emulated (product)", "float32 strict"."""
        emulation = self.emulated()
        label = emulation.name if emulation else f"mixed {self.mixed}" if self.mixed else self.dtype
        return label + " strict" * self.strict + " tf32" * self.tf32


@dataclasses.dataclass(frozen=True)
class Member:
    """One training of a comparison.

    Attributes:
        seed: of initialisation, batch order and dropout masks.
        subgradient: at 0.
        rule: "chain": the gradient at a hit is subgradient times cotangent; "injected": it is the subgradient itself,
            which is the fault of the published code (:mod:`relucheck.activations.rules`).
        control: the second run of s = 0 that must equal the first bit for bit.
        second: subgradient at the upper kink of ReLU6; None means the same as ``subgradient``.
    """

    seed: int
    subgradient: float
    rule: str = "chain"
    control: bool = False
    second: float | None = None

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0)
        if self.seed >= _MOST_SEEDS:
            raise SettingsError(f"seed={self.seed!r}: must be less than 2**31")
        one_of("rule", self.rule, RULES)
        number("subgradient", self.subgradient)
        truth("control", self.control)
        if self.second is not None:
            number("second", self.second)
        object.__setattr__(self, "subgradient", float(self.subgradient))
        if self.second is not None:
            object.__setattr__(self, "second", float(self.second))
        if self.control and not self._is_zero:
            raise SettingsError(
                f"{self.name}: a control repeats the run of s = 0 under the chain rule; it can be nothing else"
            )

    @property
    def _is_zero(self) -> bool:
        return self.subgradient == 0 and not self.second and self.rule == "chain"

    @property
    def is_reference(self) -> bool:
        """Whether it is the run of s = 0 that its seed's other members are compared with."""
        return self._is_zero and not self.control

    @property
    def subgradients(self) -> tuple[float, float]:
        """(at 0, at the upper kink)."""
        return self.subgradient, self.subgradient if self.second is None else self.second

    @property
    def name(self) -> str:
        """For messages: "s = 0.5, injected, seed 3"."""
        s = f"({self.subgradient:g}, {self.second:g})" if self.second is not None else f"{self.subgradient:g}"
        return f"s = {s}, {'control' if self.control else self.rule}, seed {self.seed}"


def members_of(
    seeds: Sequence[int], subgradients: Sequence[float], rules: Sequence[str] = RULES, second: float | None = None
) -> tuple[Member, ...]:
    """For each seed the reference (s = 0), its control, and every non-zero subgradient under every rule.

    ``second`` is the subgradient at the upper kink of every member but the references and controls.
    """
    found: list[Member] = []
    for seed in seeds:
        found += [Member(seed, 0.0), Member(seed, 0.0, control=True)]
        found += [Member(seed, s, rule, second=second) for rule in rules for s in dict.fromkeys(subgradients) if s != 0]
    return tuple(found)
