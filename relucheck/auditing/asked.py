"""What is audited: a model, mini-batches, a loss and an optimiser, checked before all else."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from relucheck.bifurcation.forward.arguments import arguments_of, refuse_unseen, tensors_in
from relucheck.bifurcation.forward.state import untouched
from relucheck.errors import ModelError, RelucheckError, error_text, whole
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.dtypes import dtype_name
from relucheck.training.model import stream
from relucheck.training.own.task import Batch, Loss, OptimiserChoice, Task
from relucheck.training.settings import Optimiser

#: Builds the model: without arguments, or with the subgradient if it has a parameter of this name.
Factory = Callable[..., nn.Module]
PARAMETER: Final = "subgradient"
#: The default loss, by the name that reports show.
CROSS_ENTROPY: Final = "mean cross-entropy"


class AuditError(RelucheckError, ValueError):
    """A model, mini-batches, a loss or an optimiser that cannot be audited."""


def name_of(value: Any) -> str:
    """The qualified name of a function, of a partial with its arguments, else of the class."""
    if isinstance(value, functools.partial):
        given = [*map(repr, value.args), *(f"{name}={one!r}" for name, one in value.keywords.items())]
        return f"{name_of(value.func)}({', '.join(given)})"
    return getattr(value, "__qualname__", type(value).__name__)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is audited.

    Attributes:
        model: an eager module, or a function that builds one.
        batches: the mini-batches that a pass goes through.
        loss: from output and targets to a scalar; None means the mean cross-entropy.
        optimiser: torch's Adam or SGD as data, or a function from the list of parameters to an optimiser; None means Adam.
        seed: of the initialisation that a function draws, and of every random number of the audit.
        device: where the model runs; None means where it is.

    Raises:
        AuditError: one of them is of a wrong kind.
    """

    model: nn.Module | Factory
    batches: Sequence[Batch]
    loss: Loss | None
    optimiser: OptimiserChoice | None
    seed: int
    device: torch.device | None = None

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise AuditError(
                f"model is of class {type(self.model).__name__}: must be an nn.Module, or a function that builds one"
            )
        if self.loss is not None and not callable(self.loss):
            raise AuditError(
                f"loss is of class {type(self.loss).__name__}: must be a function of output and targets that returns a "
                "scalar"
            )
        if not (self.optimiser is None or isinstance(self.optimiser, Optimiser) or callable(self.optimiser)):
            raise AuditError(
                f"optimiser is of class {type(self.optimiser).__name__}: must be a function from a list of parameters to a "
                "torch.optim.Optimizer, for example lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
            )

    @property
    def takes_subgradient(self) -> bool:
        """Whether the function that builds the model takes the subgradient."""
        if isinstance(self.model, nn.Module):
            return False
        try:
            return PARAMETER in inspect.signature(self.model).parameters
        except (TypeError, ValueError):
            return False

    @property
    def name(self) -> str:
        """The class of a model, or the name of the function that builds it."""
        return type(self.model).__name__ if isinstance(self.model, nn.Module) else name_of(self.model)

    @property
    def loss_name(self) -> str:
        """The loss in words."""
        return CROSS_ENTROPY if self.loss is None else name_of(self.loss)

    def built(self, subgradient: float | None = None) -> nn.Module:
        """A new model: a copy of the one that was given, or what the function builds from the seed.

        Args:
            subgradient: what a function that takes the subgradient gets; None means 0.

        Raises:
            AuditError: the model cannot be copied, or the function raises an error or returns no module.
        """
        if isinstance(self.model, nn.Module):
            try:
                return copy.deepcopy(self.model).to(self.device)
            except Exception as error:
                raise AuditError(
                    f"{self.name} cannot be copied ({error_text(error)}), so its members cannot be trained side by side; "
                    "keep no tensors that were computed from parameters in its modules"
                ) from error
        named = {PARAMETER: subgradient or 0.0} if self.takes_subgradient else {}
        with torch.random.fork_rng():
            torch.manual_seed(stream(self.seed, "initialisation"))
            try:
                model = self.model(**named)
            except RelucheckError:
                raise
            except Exception as error:
                raise AuditError(
                    f"{self.name} raised {error_text(error)}; it must build the model without arguments, or with one "
                    f"that is called {PARAMETER}"
                ) from error
        if not isinstance(model, nn.Module):
            raise AuditError(f"{self.name} returned {type(model).__name__}: must return an nn.Module")
        return model.to(self.device)

    def task(self, arithmetic: Arithmetic | None) -> Task:
        """The model, the mini-batches, the loss and the optimiser in one arithmetic.

        Args:
            arithmetic: None means that of the model.

        Raises:
            AuditError: the model has no parameters to train, or parameters of several dtypes or devices; or the optimiser
                is none. The loss of the task raises it, too, where the loss that was given raises an error.
            ModelError: the model is compiled or scripted.
        """
        model = self.built()
        if arithmetic is not None:
            model = arithmetic.apply(model)
        model.train()
        parameters = list(model.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            raise AuditError(f"{self.name}: no parameter requires a gradient, so there is nothing to train")
        for what, kinds in (
            ("dtypes", {dtype_name(parameter.dtype) for parameter in parameters}),
            ("devices", {str(parameter.device) for parameter in parameters}),
        ):
            if len(kinds) > 1:
                raise AuditError(
                    f"{self.name} has parameters of {len(kinds)} {what} ({', '.join(sorted(kinds))}); convert the model to "
                    "one of them: for mixed precision keep it in float32 and name the arithmetic 'mixed bfloat16'"
                )
        first = parameters[0]
        refuse_unseen(model, first.device)
        dtype = None if arithmetic is None else first.dtype
        batches = [(moved(x, first.device, dtype), moved(y, first.device)) for x, y in self.batches]
        loss = torch.nn.functional.cross_entropy if self.loss is None else self.loss
        optimiser = default_optimiser(first.dtype) if self.optimiser is None else self.optimiser
        if not isinstance(optimiser, Optimiser):
            _check_optimiser(optimiser, model)
        return Task(model, batches, functools.partial(_named_loss, loss, batches), optimiser)


def _named_loss(loss: Loss, batches: Sequence[Batch], output: Any, targets: Any) -> Tensor:
    """Call a loss, and name the mini-batch on which it raises an error.

    The mini-batch is the one that holds these very targets. Errors about memory and about operations that are not
    deterministic stay as they are, because the training turns them into errors of its own.
    """
    try:
        return loss(output, targets)
    except (RelucheckError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "does not have a deterministic implementation" in str(error):
            raise
        found = [number for number, (_, known) in enumerate(batches) if known is targets]
        where = f"batch {found[0]}" if len(found) == 1 else f"one of {len(found) or len(batches)} mini-batches"
        raise AuditError(
            f"the loss raised {error_text(error)} on {where}; it gets the output of the model and the targets: correct the "
            "targets of this mini-batch, or pass a loss that fits them"
        ) from error


def default_optimiser(dtype: torch.dtype) -> Optimiser:
    """Adam with torch's defaults. In float16, where its eps would be 0, eps is 1e-4."""
    return Optimiser(eps=1e-4) if dtype == torch.float16 else Optimiser()


def optimiser_of(task: Task) -> tuple[str, list[str]]:
    """The optimiser of a task in words, and the settings of each group of parameters."""
    if isinstance(task.optimiser, Optimiser):
        return task.optimiser.label, [task.optimiser.label]
    made = task.optimiser([parameter for parameter in task.model.parameters() if parameter.requires_grad])
    groups = [
        ", ".join(f"{name} {len(value) if name == 'params' else value}" for name, value in group.items())
        for group in made.param_groups
    ]
    known = {name: value for name, value in made.defaults.items() if isinstance(value, int | float | tuple)}
    words = [f"{name} {value}" for name, value in known.items() if value is not False]
    return ", ".join([type(made).__name__, *words]), groups


def _check_optimiser(make: Callable[[list[Tensor]], Any], model: nn.Module) -> None:
    """Refuse a function that makes no optimiser of these parameters, and one whose step needs a closure."""
    parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        made = make(parameters)
    except RelucheckError:
        raise
    except Exception as error:
        raise AuditError(f"optimiser raised {error_text(error)}; it gets the list of the model's parameters") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise AuditError(f"optimiser returned {type(made).__name__}: must return a torch.optim.Optimizer")
    if isinstance(made, torch.optim.LBFGS):
        raise AuditError(
            "optimiser: LBFGS runs the model several times a step, and members share each forward; use another"
        )
    held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    if not held <= {id(parameter) for parameter in parameters}:
        raise AuditError("optimiser: it holds parameters that it was not given; make it from the list that it gets")


def checked_batches(batches: Any, most: int, seed: int) -> tuple[Batch, ...]:
    """Read mini-batches, at most ``most``, and check that each is a pair of inputs and targets.

    A loader that shuffles draws its order from the seed.

    Raises:
        AuditError: it is no iterable of such pairs, or empty, or it raises an error.
    """
    example = "pass a list of pairs (inputs, targets), or a DataLoader that yields them"
    if isinstance(batches, Tensor | str | bytes | Mapping) or not isinstance(batches, Iterable):
        raise AuditError(f"batches is of class {type(batches).__name__}: {example}")
    with torch.random.fork_rng():
        torch.manual_seed(stream(seed, "batches"))
        found = _taken(batches, most)
    read: list[Batch] = []
    for number, batch in enumerate(found):
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            held = f" of length {len(batch)}" if isinstance(batch, list | tuple) else ""
            raise AuditError(f"batch {number} is a {type(batch).__name__}{held}: {example}")
        if next(tensors_in(batch[0]), None) is None:
            raise AuditError(f"batch {number}: its inputs hold no tensor ({type(batch[0]).__name__}); {example}")
        read.append((batch[0], batch[1]))
    if not read:
        raise AuditError(f"batches is empty: {example}")
    return tuple(read)


def _taken(batches: Iterable[Any], most: int) -> list[Any]:
    """The first mini-batches, at most ``most``; an error names the mini-batch that was read."""
    found: list[Any] = []
    try:
        found.extend(itertools.islice(batches, most))
    except RelucheckError:
        raise
    except Exception as error:
        raise AuditError(
            f"reading batch {len(found)} raised {error_text(error)}; pass data that can be read without relucheck"
        ) from error
    return found


def samples_of(batch: Batch) -> int:
    """The number of samples of a mini-batch: the length of the first tensor of its inputs."""
    first = next(tensors_in(batch[0]))
    return len(first) if first.ndim else 1


def moved(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Move the tensors of a tensor, list, tuple or mapping to a device.

    Floating-point ones are converted to ``dtype`` if it is given.
    """
    if isinstance(value, Tensor):
        return value.to(device, dtype if dtype is not None and value.is_floating_point() else value.dtype)
    if isinstance(value, Mapping):
        return {name: moved(part, device, dtype) for name, part in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(moved(part, device, dtype) for part in value)
    return value


def checked_loss(task: Task, seed: int) -> float:
    """Run one forward with the loss, and refuse a loss that does not fit output and targets.

    Returns:
        The loss, by which a changed function is noticed when a stored run goes on.

    Raises:
        AuditError: the model or the loss raises an error.
        ModelError: the loss is no scalar, see ``relucheck.compare``.
    """
    x, y = task.batches[0]
    device = next(task.model.parameters()).device
    with torch.random.fork_rng(), untouched(task.model, device), torch.enable_grad():
        torch.manual_seed(stream(seed, "checked"))
        arguments = arguments_of(task.model, x)
        try:
            output = arguments.call(task.model)
        except RelucheckError:
            raise
        except Exception as error:
            raise AuditError(f"{type(task.model).__name__} raised {error_text(error)} on the inputs of batch 0") from error
        value = task.loss(output, y)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(f"the loss returned {got}, not a scalar tensor; reduce it, for example by mean()")
    return float(value.detach())


def checked_counts(steps: Any, compared: Any, samples: Any, seed: Any) -> None:
    """Refuse numbers that are out of range; ``OwnSettings`` checks the steps of a training."""
    whole("steps", steps, 0, error=AuditError)
    whole("compared", compared, 1, error=AuditError)
    whole("seed", seed, 0, error=AuditError)
    if samples is not None:
        whole("samples", samples, 1, error=AuditError)
