"""Survey a device: identify the rounding of every product in every state of the switches."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from relucheck.numerics.arithmetic import Arithmetic, UnsupportedArithmeticError
from relucheck.numerics.determinism import deterministic
from relucheck.numerics.devices import environment
from relucheck.numerics.dtypes import dtype_name
from relucheck.numerics.emulation import Rounding
from relucheck.numerics.kernels import Identification, Operands, Product, exact, profiling
from relucheck.numerics.kernels.identification import emulation, identified, share
from relucheck.numerics.kernels.inputs import SETS
from relucheck.reproduction.kernels.calls import SAMPLES, Calls
from relucheck.results.progress import Progress

#: The order in which dtypes are surveyed, and the default.
DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_STATES: Final = {2: ("{}", "{} full-precision reduction", "{} strict"), 4: ("{}", "{} TF32"), 8: ("{}",)}
#: An arithmetic, and what is computed in it; the function takes a context to put around what is named.
_Computation = tuple[Arithmetic, Callable[[Any], object]]
_NORM_DIRECTIONS: Final = ("forward", "input gradient", "weight gradient", "bias gradient")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is known of one product in one arithmetic.

    Attributes:
        networks: the networks that compute it.
        layer: the layer in words.
        direction: "forward", "input gradient" or "weight gradient".
        terms: K, the length of its sums.
        samples: the size of the mini-batch.
        arithmetic: the name of the arithmetic.
        kernels: full names of the kernels, or of ATen's operators on a CPU; () if the profiler saw none.
        equal: the roundings that the kernel equals bit for bit, simplest first.
        nearest: the nearest rounding.
        differs: the share of outputs that differ from it on exact sums.
        outputs: the number of outputs.
        zeros: how many of them are exactly 0 on realistic inputs.
        zeros_float64: how many are exactly 0 if float64 sums the same factors.
        realistic: the share of outputs that differ from the first of ``equal`` on realistic inputs, where float32 rounds
            sums in an order of its own; None without such a rounding, and in 32 and 64 bits.
    """

    networks: tuple[str, ...]
    layer: str
    direction: str
    terms: int
    samples: int
    arithmetic: str
    kernels: tuple[str, ...]
    equal: tuple[str, ...]
    nearest: str
    differs: float
    outputs: int
    zeros: int
    zeros_float64: int
    realistic: float | None

    @property
    def identification(self) -> Identification:
        """The rounding that was identified."""
        return Identification(self.equal, self.nearest, self.differs)


@dataclasses.dataclass(frozen=True)
class NormFinding:
    """What is known of one batch norm in training, in one 16-bit arithmetic.

    Attributes:
        networks: the networks that compute it.
        shape: of its input.
        direction: "forward", or the gradient of the input, the weight or the bias.
        arithmetic: the name of the arithmetic.
        kernels: as in ``Finding``.
        differs: the share of outputs that differ from float32 computed on the same device and rounded once.
    """

    networks: tuple[str, ...]
    shape: tuple[int, ...]
    direction: str
    arithmetic: str
    kernels: tuple[str, ...]
    differs: float


@dataclasses.dataclass(frozen=True)
class Survey:
    """All findings on a device.

    Attributes:
        environment: the JSON form of the environment.
        findings: on products.
        norms: on batch norms.
        notes: what could not be surveyed, as sentences.
    """

    environment: Mapping[str, Any]
    findings: tuple[Finding, ...]
    norms: tuple[NormFinding, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Convert to a JSON object that ``from_json`` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Survey:
        """Read a survey from its JSON object."""
        return cls(
            content["environment"],
            tuple(Finding(**_tuples(one)) for one in content["findings"]),
            tuple(NormFinding(**_tuples(one)) for one in content["norms"]),
            tuple(content["notes"]),
        )


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def states(dtype: torch.dtype, device: torch.device) -> tuple[Arithmetic, ...]:
    """The states of the switches that change a dtype's products: on a CPU one, as none does."""
    forms = _STATES[dtype.itemsize] if device.type == "cuda" else ("{}",)
    return tuple(Arithmetic.parse(form.format(dtype_name(dtype))) for form in forms)


def survey(calls: Calls, dtypes: Sequence[torch.dtype], device: torch.device, *, progress: bool = False) -> Survey:
    """Run and identify every product and batch norm in every state of the switches.

    Algorithms are deterministic, as in training. The switches are restored afterwards.

    Args:
        calls: the products and batch norms.
        dtypes: the dtypes of operands and results.
        device: a CPU or CUDA device.
        progress: whether to show the progress.
    """
    every = {dtype: states(dtype, device) for dtype in dtypes}
    steps = sum(map(len, every.values())) * len(calls.products) * len(SAMPLES)
    findings: list[Finding] = []
    norms: list[NormFinding] = []
    notes: list[str] = []
    with deterministic(), Progress(steps, "kernels", "products", enabled=progress) as shown:
        for dtype, wanted in every.items():
            arithmetics = []
            for one in wanted:
                try:
                    with one.active():
                        arithmetics.append(one)
                except UnsupportedArithmeticError as error:
                    notes.append(f"Not surveyed: {error}.")
                    shown.advance(len(calls.products) * len(SAMPLES))
            known = _Known()
            for samples in SAMPLES:
                for finding in _products(calls, samples, arithmetics, device, known):
                    shown.advance(note=f"{finding.arithmetic}: {finding.layer}, {finding.direction}")
                    findings.append(finding)
                shown.line(f"{dtype_name(dtype)}, mini-batches of {samples}: finished")
            if dtype.itemsize == 2:
                norms += _norms(calls, arithmetics, device)
    if not all(one.kernels for one in findings):
        notes.append("The profiler did not see all kernels; with KINETO_LOG_LEVEL=0 in the environment it may say why.")
    return Survey(environment(device).to_json(), _telling(findings), tuple(norms), tuple(notes))


def _telling(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Leave out findings on the smaller mini-batch that say the same as those on the larger one."""
    findings = tuple(findings)
    usual = {
        (one.layer, one.direction, one.arithmetic): (one.kernels, one.equal[:1], bool(one.differs))
        for one in findings
        if one.samples == SAMPLES[0]
    }
    return tuple(
        one
        for one in findings
        if one.samples == SAMPLES[0]
        or usual[one.layer, one.direction, one.arithmetic] != (one.kernels, one.equal[:1], bool(one.differs))
    )


class _Known:
    """Identifications by results, so that equal results in several states are identified once."""

    def __init__(self) -> None:
        self._seen: dict[Product, list[tuple[list[Tensor], Identification]]] = {}

    def identification(self, product: Product, inputs: list[Operands], results: list[Tensor]) -> Identification:
        seen = self._seen.setdefault(product, [])
        for before, found in seen:
            if all(torch.equal(one, other) for one, other in zip(before, results, strict=True)):
                return found
        found = self._again(product, inputs, results) or identified(product, inputs, results)
        seen.append((results, found))
        return found

    def _again(self, product: Product, inputs: list[Operands], results: list[Tensor]) -> Identification | None:
        """Try what the product is with the larger mini-batch, which is quick; None if it is something else now."""
        samples = product.x[0]
        for _, found in self._seen.get(product.at(SAMPLES[0]), []) if samples != SAMPLES[0] else []:
            usual = [Rounding.parse(name) for name in found.equal]
            by_sample = [dataclasses.replace(one, parts=samples) for one in usual if one.parts == SAMPLES[0]]
            for among in filter(None, (usual, by_sample)):
                again = identified(product, inputs, results, among)
                if again.equal:
                    return again
        return None


def _products(
    calls: Calls, samples: int, arithmetics: Sequence[Arithmetic], device: torch.device, known: _Known
) -> Iterator[Finding]:
    """Survey all products in arithmetics of one dtype."""
    dtype = arithmetics[0].dtype
    listed = [
        (product.at(samples), operands.first(samples).to(dtype, device), tuple(networks))
        for product, (operands, networks) in calls.products.items()
    ]
    computations: list[_Computation] = []
    for product, operands, _ in listed:
        compute = functools.partial(product.compute, operands, None)
        computations += [(arithmetic, compute) for arithmetic in arithmetics]
    names = _profiled(computations, device)
    for product, operands, networks in listed:
        inputs = [exact(product, dtype, number) for number in range(SETS)]
        there = [one.to(dtype, device) for one in inputs]
        zeros_float64 = _zeros(product.compute(operands.map(Tensor.double)))
        for arithmetic in arithmetics:
            with arithmetic.active():
                output = product.compute(operands)
                results = [product.compute(one).cpu() for one in there]
                found = known.identification(product, inputs, results)
                realistic = None
                if found.equal and dtype.itemsize == 2:
                    emulated = product.compute(operands, emulation(product, dtype, Rounding.parse(found.equal[0])))
                    realistic = share(output, emulated)
            yield Finding(
                *(networks, product.layer, product.direction, product.terms, samples, arithmetic.name, names.pop(0)),
                *(found.equal, found.nearest, found.differs, output.numel(), _zeros(output), zeros_float64, realistic),
            )


def _norms(calls: Calls, arithmetics: Sequence[Arithmetic], device: torch.device) -> Iterator[NormFinding]:
    """Survey all batch norms in arithmetics of one dtype."""
    dtype = arithmetics[0].dtype
    listed = [(shape, operands.to(dtype, device), tuple(names)) for shape, (operands, names) in calls.norms.items()]
    computations: list[_Computation] = []
    for arithmetic in arithmetics:
        for _, operands, _ in listed:
            computations.append((arithmetic, functools.partial(_norm, operands)))
            computations.append((arithmetic, functools.partial(_norm, operands, None)))
    kernels = _profiled(computations, device)
    for arithmetic in arithmetics:
        for shape, operands, networks in listed:
            forward, backward = kernels.pop(0), kernels.pop(0)
            with arithmetic.active():
                outputs, references = _norm(operands), _norm(operands.map(Tensor.float))
            for direction, output, reference in zip(_NORM_DIRECTIONS, outputs, references, strict=True):
                names = forward if direction == "forward" else backward
                differs = share(output, reference.to(dtype))
                yield NormFinding(networks, shape, direction, arithmetic.name, names, differs)


def _norm(operands: Operands, forward: Any = None, backward: Any = None) -> list[Tensor]:
    """Compute a batch norm in training: its output, and the gradients of input, weight and bias."""
    assert operands.bias is not None
    leaves = [one.detach().requires_grad_() for one in (operands.x, operands.weight, operands.bias)]
    mean, variance = torch.zeros_like(leaves[1].detach()), torch.ones_like(leaves[1].detach())
    with forward or contextlib.nullcontext():
        output = F.batch_norm(leaves[0], mean, variance, leaves[1], leaves[2], training=True)
    with backward or contextlib.nullcontext():
        gradients = torch.autograd.grad(output, leaves, operands.cotangent)
    return [output.detach(), *gradients]


def _profiled(computations: Sequence[_Computation], device: torch.device) -> list[tuple[str, ...]]:
    """The names of the kernels of each computation."""
    for arithmetic, compute in computations:  # libraries choose and load kernels at the first call
        with arithmetic.active():
            compute(contextlib.nullcontext())
    with profiling.profiler(device) as profile:
        for number, (arithmetic, compute) in enumerate(computations):
            with arithmetic.active():
                compute(profiling.labelled(str(number), device))
    events = profile.events() or ()
    return [profiling.names(events, str(number)) for number in range(len(computations))]


def _zeros(output: Tensor) -> int:
    return int((output == 0).sum())
