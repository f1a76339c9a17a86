"""Find the activations in a target: a module, ``module:attribute``, or a .py file.

A target is other people's code, so its import is isolated: it has a time limit, its output is captured, and its changes to
global state are undone and reported. A target that cannot be imported gives a ``Finding`` with an error and does not stop
the run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from relucheck.activations.kinks import Activation, identity
from relucheck.errors import MISSING, NotCallableError, RelucheckError, did_you_mean
from relucheck.gate.constructors import REGISTERED
from relucheck.gate.frameworks import DEFAULT, FRAMEWORKS, framework_named, loaded_frameworks
from relucheck.gate.isolation.guard import TIME_LIMIT, contained, preserved_state, silenced
from relucheck.gate.refusals import required

#: Names of a first parameter that mark a function without annotations as an activation.
_INPUT_NAMES: Final = frozenset(
    {"x", "input", "inputs", "z", "t", "tensor", "hidden_states", "a", "pre_activation", "u", "y", "x1", "gate", "up"}
)


class TargetImportError(RelucheckError):
    """A target that does not exist, cannot be imported, or contains no activations."""

    exit_code = MISSING


@dataclasses.dataclass(frozen=True)
class Finding:
    """The activations in one target.

    Attributes:
        target: the target as the user wrote it.
        activations: the activations.
        skipped: candidates that need arguments which nobody gave, as pairs of name and reason.
        notes: what the import printed, and which global state it changed.
        error: why the target gives nothing to check; empty otherwise.
    """

    target: str
    activations: tuple[Activation, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""


def as_activation(value: Any) -> Activation:
    """Convert a module class, a module or a function of one tensor to an ``Activation``.

    An ``Activation`` is returned as it is.

    Raises:
        NotCallableError: for any other object.
    """
    if isinstance(value, Activation):
        return value
    framework = _framework_of(value)
    if _is_module(value):
        return Activation(type(value).__name__, functools.partial(identity, value), framework=framework)
    if _is_module_class(value):
        reachable = "<" not in value.__qualname__
        source = (f"import {value.__module__}", f"{value.__module__}.{value.__qualname__}()") if reachable else None
        return Activation(value.__name__, value, source=source, framework=framework)
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        reachable = "<" not in getattr(value, "__qualname__", "<")
        source = (f"import {value.__module__}", f"{value.__module__}.{value.__qualname__}") if reachable else None
        owner = getattr(value, "__self__", None)
        if inspect.isclass(owner):  # a method of a class, which may inherit it
            name, line = owner.__name__, f"import {owner.__module__}"
            reachable = "<" not in owner.__qualname__
            source = (line, f"{owner.__module__}.{owner.__qualname__}.{value.__name__}") if reachable else None
        return Activation(name, functools.partial(identity, value), source=source, framework=framework)
    raise NotCallableError(
        f"{value!r} is no activation; pass an Activation, an nn.Module class or instance, or a function of one tensor"
    )


def _is_module(value: Any) -> bool:
    return any(framework.is_module(value) for framework in loaded_frameworks())


def _is_module_class(value: Any) -> bool:
    return any(framework.is_module_class(value) for framework in loaded_frameworks())


def _framework_of(value: Any) -> str:
    """Return the name of the framework whose module, module class or function of an array an object is."""
    annotation = _annotation(value) if inspect.isroutine(value) else None
    for framework in loaded_frameworks():
        if framework.is_module(value) or framework.is_module_class(value) or framework.is_array_type(annotation):
            return framework.name
    return DEFAULT


def discover(
    target: str, *, constructors: Mapping[str, Any] | None = None, root: Path | None = None, seconds: float = TIME_LIMIT
) -> Finding:
    """Import one target and find its activations.

    Args:
        target: ``package.module``, ``package.module:attribute``, ``path/to/file.py`` or ``path/to/file.py:attribute``.
        constructors: arguments from the configuration by class name: a table of keyword arguments, or a list of positional
            ones.
        root: folder from which modules are imported and files are read; the working directory if None.
        seconds: time limit of the import in seconds.

    Returns:
        The activations; an import that fails is described in ``error``.
    """
    root = root or Path.cwd()
    notes: list[str] = []
    try:
        with silenced() as printed, preserved_state() as changes, contained(seconds):
            activations, skipped = _activations_in(target, root, constructors or {})
    except TargetImportError as error:
        return Finding(target, error=str(error))
    except Exception as error:
        return Finding(target, error=f"target {target!r} cannot be imported: {error}")
    if changes:
        notes.append(f"the import changed global state, which was restored: {'; '.join(changes)}")
    if printed.getvalue():
        notes.append(f"the import printed {len(printed.getvalue())} characters, which are not shown")
    if not activations and not skipped:
        hint = "name a module that defines nn.Module classes or functions of one tensor, or MODULE:ATTRIBUTE"
        return Finding(target, notes=tuple(notes), error=f"target {target!r} holds no activations: {hint}")
    return Finding(target, tuple(activations), tuple(skipped), tuple(notes))


def _activations_in(
    target: str, root: Path, constructors: Mapping[str, Any]
) -> tuple[list[Activation], list[tuple[str, str]]]:
    """Return the activations of a target, and the candidates that need arguments, each with the reason."""
    known = _namespace(target)
    if known is not None:
        return known, []
    container, attribute = load(target, root)
    return _collect(target, container, attribute, constructors)


def _namespace(target: str) -> list[Activation] | None:
    """Return the activations of a target that is a part of a framework; None for any other target."""
    package = target.partition(".")[0]
    namespaces = framework_named(package).namespaces() if package in FRAMEWORKS else {}
    return namespaces[target]() if target in namespaces else None


def load(target: str, root: Path) -> tuple[Any, str]:
    """Import the module that a target names; return it and the attribute after the colon.

    Raises:
        TargetImportError: it names no module, or none that exists.
        Exception: what the import raises.
    """
    place, _, attribute = target.partition(":") if not target.endswith(".py") else (target, "", "")
    if not place.strip():
        raise TargetImportError(
            f"target {target!r} names no module; write package.module, package.module:attribute or file.py"
        )
    if place.endswith(".py"):
        return _load_file(place, root), attribute
    for folder in (str(root / "src"), str(root)):
        if os.path.isdir(folder) and folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        return importlib.import_module(place), attribute
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise TargetImportError(
                f"target {target!r}: no module named {error.name!r}; install it, or run from the folder that holds it"
            ) from error
        raise


def _load_file(place: str, root: Path) -> Any:
    path = (root / place).resolve()
    if not path.is_file():
        raise TargetImportError(f"target {place!r}: no such file in {root}")
    # unique, so that two files called activations.py do not share a module; stable, so that pickle finds it again
    name = f"relucheck_target_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetImportError(f"target {place!r} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module.__relucheck_path__ = str(path)  # type: ignore[attr-defined]  # read back by _source
    return module


def _collect(
    target: str, container: Any, attribute: str, constructors: Mapping[str, Any]
) -> tuple[list[Activation], list[tuple[str, str]]]:
    if not attribute:
        names = getattr(container, "__all__", None)
        listed = names is not None
        candidates = [
            (name, getattr(container, name)) for name in (names or sorted(vars(container))) if hasattr(container, name)
        ]
        chosen = [(name, value) for name, value in candidates if _is_candidate(name, value, container, listed)]
    else:
        chosen = list(_unpack(attribute.split(".")[-1], attribute_of(container, attribute, target)))
    activations: list[Activation] = []
    skipped: list[tuple[str, str]] = []
    seen: set[tuple[str, int]] = set()
    for name, value in chosen:
        # in a module, a second name of an activation is an alias; a table that the user names has its names for a reason
        key = (name if attribute else "", id(value))
        if key in seen:
            continue
        seen.add(key)
        try:
            activations.append(_activation_of(name, value, container, attribute, constructors))
        except _NeedsArguments as error:
            skipped.append((name, str(error)))
    return activations, skipped


def attribute_of(container: Any, attribute: str, target: str) -> Any:
    """What a target names in its module, such as "Class.member".

    Raises:
        TargetImportError: there is nothing of this name.
    """
    value = container
    for part in attribute.split("."):
        if not hasattr(value, part):
            hint = did_you_mean(part, dir(value))
            raise TargetImportError(f"target {target!r}: {part!r} does not exist{'; ' * bool(hint)}{hint.strip()}")
        value = getattr(value, part)
    return value


def _unpack(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each activation in a list or mapping, or of the value itself."""
    if isinstance(value, Mapping):
        yield from ((str(key).replace("/", "_"), item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield getattr(item, "name", None) or getattr(item, "__name__", None) or f"{name}[{index}]", item
    elif isinstance(value, Activation) or callable(value):
        yield name, value
    else:
        raise TargetImportError(
            f"{name!r} is of type {type(value).__name__!r}; name an activation, or a list or dictionary of activations"
        )


def _is_candidate(name: str, value: Any, module: Any, listed: bool) -> bool:
    """Whether an attribute of a module looks like an activation that the module defines."""
    if name.startswith("_"):
        return False
    if isinstance(value, Activation):
        return True
    home = getattr(value, "__module__", None) or ""
    package = module.__name__.split(".")[0]
    defined_here = listed or home == module.__name__ or home.split(".")[0] == package
    if inspect.isclass(value):
        return defined_here and _is_module_class(value)
    if _is_module(value):
        return True
    return defined_here and inspect.isroutine(value) and _takes_an_array(value)


def _input(function: Any) -> inspect.Parameter | None:
    """Return the first parameter of a function, to which a caller can pass an array by position."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return parameters[0] if parameters and parameters[0].kind in positional else None


def _annotation(function: Any) -> Any:
    """Return the annotation of a function's input; None without one."""
    parameter = _input(function)
    return None if parameter is None or parameter.annotation is parameter.empty else parameter.annotation


def _takes_an_array(function: Any) -> bool:
    parameter = _input(function)
    if parameter is None:
        return False
    if parameter.annotation is not parameter.empty:
        return any(framework.is_array_type(parameter.annotation) for framework in loaded_frameworks())
    return parameter.name in _INPUT_NAMES


def _takes_arrays(function: Any) -> bool:
    """Whether no annotation says that an argument which a function needs is something else than an array."""
    needed = required(function)
    frameworks = loaded_frameworks()
    return all(
        p.annotation is p.empty or any(framework.is_array_type(p.annotation) for framework in frameworks) for p in needed
    )


class _NeedsArguments(Exception):
    """A class or function with arguments that nobody gave."""


def _required(callable_: Any, skip: int) -> list[str]:
    try:
        parameters = list(inspect.signature(callable_).parameters.values())
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters[skip:] if p.kind in kinds and p.default is p.empty]


def _activation_of(name: str, value: Any, module: Any, attribute: str, constructors: Mapping[str, Any]) -> Activation:
    if isinstance(value, Activation):
        return value if value.source else dataclasses.replace(value, source=_source_of_declared(value, module, attribute))
    name = name.replace("/", "_")
    line, expression = _source(value, name, module, attribute)
    declared = functools.partial(Activation, framework=_framework_of(value))
    if _is_module(value):
        return declared(name, functools.partial(identity, value), source=(line, expression))
    is_class = inspect.isclass(value)
    make = REGISTERED.get(f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', name)}") or REGISTERED.get(
        name
    )
    if make is not None:
        return declared(name, functools.partial(make, value), source=None)
    arguments = constructors.get(name)
    if arguments is not None:
        positional = list(arguments) if isinstance(arguments, list) else []
        named = dict(arguments) if isinstance(arguments, Mapping) else {}
        text = ", ".join([*map(repr, positional), *(f"{key}={item!r}" for key, item in named.items())])
        if is_class:
            return declared(name, functools.partial(value, *positional, **named), source=(line, f"{expression}({text})"))
        fixed = functools.partial(_call_with, value, positional, named)
        source = (line, f"lambda x: {expression}(x, {text})")
        # a partial hides the argument inplace from the gate, which looks for it in the function's signature
        inplace: Literal[True] | None = True if named.get("inplace") is True else None
        return declared(name, functools.partial(identity, fixed), inplace=inplace, source=source)
    needed = _required(value, 0 if is_class else 1)
    if needed and (is_class or not _takes_arrays(value)):
        raise _NeedsArguments(
            f"needs arguments: {', '.join(needed)}; set them under [tool.relucheck.constructors] as {name} = "
            f"{{ {needed[0]} = ... }}, or call relucheck.register_constructor"
        )
    if is_class:
        return declared(name, value, source=(line, f"{expression}()"))
    return declared(name, functools.partial(identity, value), source=(line, expression))


def _call_with(function: Any, positional: list[Any], named: Mapping[str, Any], x: Any) -> Any:
    return function(x, *positional, **named)


def _reach(value: Any, name: str, module: Any, attribute: str) -> str | None:
    """Return an expression for a value in its module: a name, or an entry of a container.

    None if the module does not refer to the value.
    """
    names = vars(module) if hasattr(module, "__dict__") else {}
    if names.get(name) is value:
        return name
    for key, item in names.items():
        if item is value:
            return str(key)
    for key in dict.fromkeys([attribute, *names]):
        item = names.get(key)
        entries = item.items() if isinstance(item, Mapping) else enumerate(item) if isinstance(item, list | tuple) else ()
        for place, entry in entries:
            if entry is value and isinstance(place, str | int):
                return f"{key}[{place!r}]"
    return None


def _source(value: Any, name: str, module: Any, attribute: str) -> tuple[str, str]:
    """Return the import line and the expression by which a script obtains a value."""
    path = getattr(module, "__relucheck_path__", None)
    reach = _reach(value, name, module, attribute)
    if reach is not None:
        head = reach.partition("[")[0]
        if path is not None:
            folder, stem = str(Path(path).parent), Path(path).stem
            # the script imports the file by name and does not run it, because pickle must find its classes again
            if not stem.isidentifier():
                return f"{_reaching(folder)}; import importlib", f"importlib.import_module({stem!r}).{reach}"
            return f"{_reaching(folder)}; import {stem}", f"{stem}.{reach}"
        folder = _folder(module)
        return f"{f'{_reaching(folder)}; ' if folder else ''}from {module.__name__} import {head}", reach
    home, qualname = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    if home and qualname and "<" not in qualname and path is None:
        return f"import {home}", f"{home}.{qualname}"
    return "", name


def _reaching(folder: str) -> str:
    """Return the code by which a script in any folder can import the modules of another one."""
    return f"import sys; sys.path.insert(0, {folder!r})"


def _folder(module: Any) -> str:
    """Return the folder from which a module is imported; empty for one that is installed."""
    file = getattr(module, "__file__", None)
    if not file:
        return ""
    folder = Path(file).parents[module.__name__.count(".") + (Path(file).stem == "__init__")]
    installed = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return "" if str(folder) in installed else str(folder)


def _source_of_declared(value: Activation, module: Any, attribute: str) -> tuple[str, str] | None:
    line, expression = _source(value, value.name, module, attribute)
    return (line, f"{expression}.make()") if line else None
