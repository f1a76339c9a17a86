"""The gate's configuration, from pyproject.toml and the command line. Imports no torch."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from relucheck.errors import RelucheckError, did_you_mean, instance, listed, number, one_of, truth

#: All dtypes, in the order in which they are checked: float32 first, which most users compute in.
DTYPE_NAMES: Final = ("float32", "float64", "bfloat16", "float16")
CONVENTIONS: Final = ("clarke", "minimum-norm", "declared", "reference")
FAIL_ON: Final = ("error", "notice")
#: The largest time limit in seconds and memory limit in MiB, far below those that overflow the system's counters.
_LONGEST: Final = 1e6
_LARGEST: Final = 2.0**30


class ConfigError(RelucheckError, ValueError):
    """A setting of the gate whose value is not allowed."""


@dataclasses.dataclass(frozen=True)
class ExpectedFailure:
    """A known failure, which does not fail the run; if it no longer fails, the run does.

    Attributes:
        id: ``Activation/law/dtype``; ``*`` matches any text and ``?`` any character, slashes included.
        reason: why the failure is expected.
        message: regular expression that the failure's message must match, so that the entry does not hide another fault.
        issue: link to an issue about the failure.
    """

    id: str
    reason: str
    message: str = ""
    issue: str = ""

    def matches(self, item: str) -> bool:
        """Whether this entry is about the item with an id."""
        # fnmatch would read brackets as well, which names contain (acts[0])
        pattern = re.escape(self.id).replace(r"\*", ".*").replace(r"\?", ".")
        return re.fullmatch(pattern, item) is not None

    def covers(self, message: str) -> bool:
        """Whether a failure's message matches the regular expression ``message``."""
        return re.search(self.message, message, re.DOTALL) is not None


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """The settings of one run of the gate.

    Attributes:
        targets: what to check: modules, ``module:attribute`` or .py files.
        dtypes: names of the dtypes to check.
        devices: devices to check on, such as ``cpu`` and ``cuda:0``.
        convention: which subgradients are allowed at a kink: ``clarke`` (the Clarke interval), ``minimum-norm`` (its
            element nearest zero), ``declared`` (the declared ones) or ``reference`` (those of a declared reference).
        laws: names of the laws to check; all laws if empty.
        compile: whether to check every activation under ``torch.compile`` as well.
        fail_on: lowest level that fails the run, ``error`` or ``notice``.
        scan: range of inputs in which to search for kinks.
        time_limit: seconds that one item may take.
        memory_limit: MiB that one item may allocate.
        constructors: arguments for classes that need some, by class name: a table of keyword arguments, or a list of
            positional ones.
        expected: expected failures.
        surrogates: names of activations whose gradient deliberately differs from the derivative.
        baseline: kink table, written by ``relucheck kinks --json``, that the kinks of this run must equal.
        isolate: whether activations run in processes of their own, which are replaced when they die. None leaves it to the
            caller: ``relucheck check`` isolates, and pytest does not.
        curves: whether verdicts that carry rows of the kink table carry the activation's curves as well, for figures.
        update: whether every failure of an activation is an expected one, because the run writes the list of them.
        root: folder from which targets are imported.

    Raises:
        ConfigError: for a value that is not allowed.
    """

    targets: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DTYPE_NAMES
    devices: tuple[str, ...] = ("cpu",)
    convention: str = "clarke"
    laws: tuple[str, ...] = ()
    compile: bool = False
    fail_on: str = "error"
    scan: tuple[float, float] = (-32.0, 32.0)
    time_limit: float = 60.0
    memory_limit: float = 4096.0
    constructors: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    expected: tuple[ExpectedFailure, ...] = ()
    surrogates: tuple[str, ...] = ()
    baseline: str = ""
    isolate: bool | None = None
    curves: bool = False
    update: bool = False
    root: Path = dataclasses.field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        for dtype in self.dtypes:
            one_of(_named("dtypes"), dtype, DTYPE_NAMES, error=ConfigError)
        one_of(_named("convention"), self.convention, CONVENTIONS, error=ConfigError)
        one_of(_named("fail-on"), self.fail_on, FAIL_ON, error=ConfigError)
        number(_named("time-limit"), self.time_limit, above=0, most=_LONGEST, error=ConfigError)
        number(_named("memory-limit"), self.memory_limit, above=0, most=_LARGEST, error=ConfigError)
        for bound in self.scan:
            number(_named("scan"), bound, error=ConfigError)
        low, high = self.scan
        if not low < high:
            raise ConfigError(f"{_named('scan')}={[low, high]}: the first number must be smaller than the second")


def _named(setting: str) -> str:
    """The name of a setting in messages."""
    return f"[tool.relucheck] {setting}"


def suggestion(wanted: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'relu'?)"`` for a misspelt name or id.

    The result is empty if no known name is near.
    """
    hint = did_you_mean(wanted, known, most=2).strip()
    return f" ({hint})" if hint else ""


def _strings(name: str, value: Any) -> tuple[str, ...]:
    strings = listed(_named(name), value, '["relu"]', error=ConfigError)
    return tuple(_string(name, item) for item in strings)


def _string(name: str, value: Any) -> str:
    instance(_named(name), value, str, '"relu"', error=ConfigError)
    return str(value)


def _number(name: str, value: Any) -> float:
    number(_named(name), value, error=ConfigError)
    return float(value)


def _flag(name: str, value: Any) -> bool:
    truth(_named(name), value, spelling="true or false", error=ConfigError)
    return bool(value)


def _range(name: str, value: Any) -> tuple[float, float]:
    bounds = listed(_named(name), value, "[-32, 32]", error=ConfigError)
    if len(bounds) != 2:
        raise ConfigError(f"{_named(name)}={value!r}: must be two numbers, for example [-32, 32]")
    return _number(name, bounds[0]), _number(name, bounds[1])


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(item, dict | list) for item in value.values()):
        raise ConfigError(
            f"[tool.relucheck.{name}]: each entry must be a table of keyword arguments or a list, for example "
            f"Name = {{ slope = 0.1 }}"
        )
    return value


def _expected(name: str, value: Any) -> tuple[ExpectedFailure, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ConfigError(f"[[tool.relucheck.{name}]]: a table per entry is needed, with id and reason")
    failures = []
    fields = [field.name for field in dataclasses.fields(ExpectedFailure)]
    for position, entry in enumerate(value, start=1):
        where = f"[[tool.relucheck.{name}]] entry {position}"
        for key, item in entry.items():
            one_of(f"{where}: key", key, fields, error=ConfigError)
            instance(f"{where}: {key}", item, str, '"known"', error=ConfigError)
        for key in ("id", "reason"):
            if not entry.get(key, "").strip():
                raise ConfigError(f"{where}: {key} is missing; an expected failure needs an id and a reason")
        if entry["id"].count("/") < 2 and "*" not in entry["id"]:
            raise ConfigError(f"{where}: id={entry['id']!r}: an id is Activation/law/dtype, with * and ? as wildcards")
        try:
            re.compile(entry.get("message", ""))
        except re.error as error:
            raise ConfigError(f"{where}: message = {entry['message']!r} is no regular expression: {error}") from None
        failures.append(ExpectedFailure(**entry))
    return tuple(failures)


_READERS: Final[Mapping[str, tuple[str, Callable[[str, Any], Any]]]] = {
    "targets": ("targets", _strings),
    "dtypes": ("dtypes", _strings),
    "devices": ("devices", _strings),
    "convention": ("convention", _string),
    "laws": ("laws", _strings),
    "compile": ("compile", _flag),
    "fail-on": ("fail_on", _string),
    "scan": ("scan", _range),
    "time-limit": ("time_limit", _number),
    "memory-limit": ("memory_limit", _number),
    "constructors": ("constructors", _table),
    "expected-failures": ("expected", _expected),
    "surrogates": ("surrogates", _strings),
    "baseline": ("baseline", _string),
    "isolate": ("isolate", _flag),
}
#: Keys of ``[tool.relucheck]`` that belong to other parts of relucheck.
OTHER_KEYS: Final = frozenset({"bifurcation"})


def from_table(table: Mapping[str, Any], root: Path | None = None) -> GateConfig:
    """Build the configuration from the content of a ``[tool.relucheck]`` table.

    Args:
        table: the parsed table.
        root: folder from which targets are imported; the working directory if None.

    Raises:
        ConfigError: for an unknown key or a value of the wrong kind.
    """
    settings: dict[str, Any] = {"root": root or Path.cwd()}
    for key, value in table.items():
        if key in OTHER_KEYS:
            continue
        one_of(_named("key"), key, sorted(_READERS), error=ConfigError)
        field, read = _READERS[key]
        settings[field] = read(key, value)
    return GateConfig(**settings)


def read_table(root: Path) -> Mapping[str, Any]:
    """Read the ``[tool.relucheck]`` table of ``root/pyproject.toml``.

    It is empty if the file or the table is missing.

    Raises:
        ConfigError: for a file that is not valid TOML.
    """
    path = root / "pyproject.toml"
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            table = tomllib.load(file).get("tool", {}).get("relucheck", {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [tool.relucheck] must be a table")
    return table


def read(root: Path) -> GateConfig:
    """Read the configuration in ``root/pyproject.toml``.

    Settings that the file does not name have their defaults.

    Raises:
        ConfigError: for a file that is not valid TOML, an unknown key, or a value that is not allowed.
    """
    return from_table(read_table(root), root)


def _separated(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


#: The fields that the command line can set, each with the function that converts the option's value.
OPTIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "targets": tuple,
    "dtypes": _separated,
    "devices": _separated,
    "laws": _separated,
    "convention": str,
    "fail_on": str,
    "baseline": str,
    "time_limit": float,
    "compile": bool,
    "isolate": bool,
    "update": bool,
}


def merged(root: Path, options: Mapping[str, Any], folder: Path) -> GateConfig:
    """Merge pyproject.toml with command-line options, which take precedence.

    Args:
        root: folder of pyproject.toml.
        options: values of the options, by the names in ``OPTIONS``. Dtypes, devices and laws are text separated by commas.
            None, False, an empty list and an empty text leave the setting as the file has it.
        folder: working directory of the command line, from which its targets are imported.

    Raises:
        ConfigError: for a value that is not allowed.
    """
    settings = dict(vars(read(root)))
    for name, value in options.items():
        if value is None or value is False or (OPTIONS[name] in (tuple, _separated) and not value):
            continue
        settings[name] = OPTIONS[name](value)
        if name == "targets":
            settings["root"] = folder
    return GateConfig(**settings)
