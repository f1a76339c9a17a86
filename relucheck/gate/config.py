"""The gate's configuration: ``[tool.relucheck]`` in pyproject.toml, and what the command line adds. Imports no torch."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from relucheck.errors import RelucheckError, did_you_mean, instance, listed, number, one_of, truth

#: In the order in which laws are run: what users compute in first comes first.
DTYPE_NAMES: Final = ("float32", "float64", "bfloat16", "float16")
CONVENTIONS: Final = ("clarke", "minimum-norm", "declared", "reference")
FAIL_ON: Final = ("error", "notice")


class ConfigError(RelucheckError, ValueError):
    """A setting that cannot be used: names the setting, the rule and the fix."""


@dataclasses.dataclass(frozen=True)
class ExpectedFailure:
    """A failure that is known: it must go on failing, with this message, or be taken out of the list.

    Attributes:
        id: ``Activation/law/dtype``; ``*`` and ``?`` match within and across the parts.
        reason: why it is expected.
        message: regular expression that the failure's message must match, so that it cannot hide another fault.
        issue: link to where it is tracked.
    """

    id: str
    reason: str
    message: str = ""
    issue: str = ""

    def matches(self, item: str) -> bool:
        """Whether an item's id is meant. Only ``*`` and ``?`` are special: names may hold brackets (``acts[0]``)."""
        pattern = re.escape(self.id).replace(r"\*", ".*").replace(r"\?", ".")
        return re.fullmatch(pattern, item) is not None

    def covers(self, message: str) -> bool:
        """Whether a failure's message is the expected one."""
        return re.search(self.message, message, re.DOTALL) is not None


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """What a run of the gate looks at, and how.

    Attributes:
        targets: modules, ``module:attribute`` or .py files.
        dtypes: names of the dtypes under test.
        devices: devices under test.
        convention: ``clarke``, ``minimum-norm``, ``declared`` or ``reference``.
        laws: names of the laws to run, all if empty.
        compile: check ``torch.compile`` for every activation.
        fail_on: ``error``, or ``notice`` to fail on notices too.
        scan: range in which kinks are looked for.
        time_limit: seconds per item.
        memory_limit: MiB that an item may allocate.
        constructors: arguments of classes that need some, by class name: a table of keywords or a list.
        expected: expected failures.
        surrogates: names of activations whose gradient is a surrogate on purpose.
        baseline: kink table that the run's must equal, as written by ``relucheck kinks --json``.
        root: folder from which targets are imported.
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
    root: Path = dataclasses.field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        for dtype in self.dtypes:
            one_of(_named("dtypes"), dtype, DTYPE_NAMES, error=ConfigError)
        one_of(_named("convention"), self.convention, CONVENTIONS, error=ConfigError)
        one_of(_named("fail-on"), self.fail_on, FAIL_ON, error=ConfigError)
        number(_named("time-limit"), self.time_limit, above=0, error=ConfigError)
        number(_named("memory-limit"), self.memory_limit, above=0, error=ConfigError)
        for bound in self.scan:
            number(_named("scan"), bound, error=ConfigError)
        low, high = self.scan
        if not low < high:
            raise ConfigError(f"{_named('scan')}={[low, high]}: the first number must be smaller than the second")


def _named(setting: str) -> str:
    """A setting as messages call it."""
    return f"[tool.relucheck] {setting}"


def suggestion(wanted: str, known: Iterable[str]) -> str:
    """``" (did you mean ...?)"`` for a name or id that does not exist, or nothing."""
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
            f"[tool.relucheck.{name}]: each entry is a table of keyword arguments or a list, as Name = {{ slope = 0.1 }}"
        )
    return value


def _expected(name: str, value: Any) -> tuple[ExpectedFailure, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ConfigError(f"[[tool.relucheck.{name}]]: a table per entry is needed, with id and reason")
    found = []
    fields = [field.name for field in dataclasses.fields(ExpectedFailure)]
    for position, entry in enumerate(value, start=1):
        where = f"[[tool.relucheck.{name}]] entry {position}"
        for key, item in entry.items():
            one_of(f"{where}: key", key, fields, error=ConfigError)
            instance(f"{where}: {key}", item, str, '"known"', error=ConfigError)
        for key in ("id", "reason"):
            if not entry.get(key, "").strip():
                raise ConfigError(f"{where}: {key} is missing; an expected failure says which item and why")
        if entry["id"].count("/") < 2 and "*" not in entry["id"]:
            raise ConfigError(f"{where}: id = {entry['id']!r}: an id is Activation/law/dtype, with * and ? as wildcards")
        try:
            re.compile(entry.get("message", ""))
        except re.error as error:
            raise ConfigError(f"{where}: message = {entry['message']!r} is no regular expression: {error}") from None
        found.append(ExpectedFailure(**entry))
    return tuple(found)


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
}
#: Keys of ``[tool.relucheck]`` that other parts of relucheck read.
OTHER_KEYS: Final = frozenset({"bifurcation"})


def from_table(table: Mapping[str, Any], root: Path | None = None) -> GateConfig:
    """The configuration that a ``[tool.relucheck]`` table means.

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
    """The ``[tool.relucheck]`` table of ``root/pyproject.toml``; empty without one.

    Raises:
        ConfigError: for a file that is no TOML.
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
    """The configuration in ``root/pyproject.toml``, defaults without one."""
    return from_table(read_table(root), root)


def _separated(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


#: The fields that a command line can set, and what makes one of the option's value.
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
}


def merged(root: Path, options: Mapping[str, Any], folder: Path) -> GateConfig:
    """The configuration in ``root/pyproject.toml`` with the options of a command line, which win.

    Args:
        root: folder of pyproject.toml.
        options: values by the names in :data:`OPTIONS`, as the command line has them: lists of dtypes, devices and laws are
            separated by commas. None, False, an empty list and an empty text for one leave what the file says.
        folder: where the command line was given; its targets are looked for there.

    Raises:
        ConfigError: for a setting that cannot be used.
    """
    settings = dict(vars(read(root)))
    for name, value in options.items():
        if value is None or value is False or (OPTIONS[name] in (tuple, _separated) and not value):
            continue
        settings[name] = OPTIONS[name](value)
        if name == "targets":
            settings["root"] = folder
    return GateConfig(**settings)
