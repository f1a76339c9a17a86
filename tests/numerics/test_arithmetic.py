"""Arithmetics: names and their inverse, refusals, products, and the process's switches coming back."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relucheck.numerics import arithmetic as numerics_arithmetic
from relucheck.numerics import precision as numerics_precision
from relucheck.numerics.arithmetic import Arithmetic, UnsupportedArithmeticError
from relucheck.numerics.bits import same_bits
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import DTYPES, UnsupportedDtypeError, dtype_name
from relucheck.numerics.emulation import Emulation, EmulationError, Rounding, conv2d, linear
from tests.helpers import forked

#: Every combination of settings, those that are no arithmetic included.
settings = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "mixed": st.sampled_from([None, "bfloat16", "float16"]),
        "emulation": st.sampled_from([None, "rounded", "product", "tf32", "split-k 2"])
        | st.integers(2, 10**6).map("split-k {}".format),
        "tf32": st.booleans(),
        "reduction": st.tuples(st.booleans(), st.booleans()),
    }
)


def _is_one(given: dict[str, Any]) -> bool:
    """Whether settings are an arithmetic, said the other way round: what each of them needs."""
    dtype, plain = given["dtype"], (True, True)
    if given["emulation"] is not None:
        alone = given["mixed"] is None and not given["tf32"] and given["reduction"] == plain
        return alone and (given["emulation"] != "tf32" or dtype == torch.float32)
    if given["tf32"]:
        return dtype == torch.float32 and given["mixed"] is None and given["reduction"] == plain
    if given["mixed"] is not None and dtype != torch.float32:
        return False
    narrow = given["mixed"] is not None or dtype in (torch.float16, torch.bfloat16)
    return given["reduction"] in ([plain, (False, True), (False, False)] if narrow else [plain])


def _name_is_inverse(given: dict[str, Any]) -> bool:
    made = Arithmetic(**given)
    return Arithmetic.parse(made.name) == made and Arithmetic.parse(made.name).name == made.name


@given(settings)
def test_parse_is_the_inverse_of_the_name(given: dict[str, Any]) -> None:
    """And settings are an arithmetic or one clear error."""
    if _is_one(given):
        made = Arithmetic(**given)
        assert {field: getattr(made, field) for field in given} == given
        assert _name_is_inverse(given)
        assert Arithmetic.parse(f" {made.name.upper()} ") == made
        assert str(made) == made.name
    else:
        with pytest.raises(UnsupportedArithmeticError, match=rf"^arithmetic of {dtype_name(given['dtype'])}: "):
            Arithmetic(**given)


def test_all_arithmetics_have_different_names() -> None:
    found = {}
    grid = itertools.product(
        DTYPES,
        (None, "bfloat16", "float16"),
        (None, "rounded", "product", "split-k 2", "split-k 20", "tf32"),
        (False, True),
        itertools.product((False, True), repeat=2),
    )
    for values in grid:
        given = dict(zip(("dtype", "mixed", "emulation", "tf32", "reduction"), values, strict=True))
        if _is_one(given):
            made = Arithmetic(**given)
            assert made.name not in found
            found[made.name] = made
            assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
            assert hash(Arithmetic.parse(made.name)) == hash(made)
    assert len(found) == 2 * 3 + 2 + 1 + 2 * 3 + 4 * 4 + 1  # 16 bits, wide, TF32, mixed, emulated, that of TF32
    assert {"float32", "float32 TF32", "mixed float16 strict", "bfloat16 full-precision reduction"} <= set(found)


def test_the_round_trip_check_fails_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leaves the third reduction out."""
    given = {"dtype": torch.float16, "reduction": (False, True)}
    assert _name_is_inverse(given)
    monkeypatch.setitem(numerics_arithmetic._REDUCTIONS, (False, True), "")
    assert not _name_is_inverse(given)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "arithmetic '': must be a dtype"),
        (None, "arithmetic None: must be a dtype"),
        ("float32 strict", r"arithmetic of float32: reduction=\(False, False\) is for a CUDA device's own 16-bit products"),
        ("float64 TF32", "arithmetic of float64: tf32=True is a way to multiply float32"),
        ("bfloat16 quick", "arithmetic 'bfloat16 quick': must be a dtype"),
        ("float8", "arithmetic 'float8': dtype 'float8' is not supported"),
        ("mixed float32", "arithmetic: mixed='float32': did you mean 'float16'\\? must be one of bfloat16, float16"),
        ("mixed bfloat16 emulated (product)", "mixed='bfloat16' and emulation='product' exclude each other"),
        ("float16 emulated (folded)", "rounding 'folded': must be rounded, product, tf32 or split-k N; "),
        ("float16 emulated (split-k)", "rounding 'split-k': must be rounded, product, tf32 or split-k N; "),
        ("float16 emulated (split-k 1)", "rounding 'split-k 1': split-k takes at least 2 parts; use product"),
        ("float16 emulated (split-k many)", "rounding 'split-k many': must be rounded, product, tf32 or split-k N; "),
        (f"float16 emulated (split-k {'9' * 5000})", "numbers have at most 18 digits"),
        ("bfloat16 emulated (rounded )", "rounding 'rounded ': must be rounded, product, tf32 or split-k N; "),
        ("float16 emulated (product 2)", "rounding 'product 2': must be rounded, product, tf32 or split-k N; "),
        (
            "bfloat16 emulated (rounded; layer 1 forwards: product)",
            "override 'layer 1 forwards: product': must be SELECTION: ",
        ),
        ("bfloat16 emulated (tf32)", "TF32 rounds float32 factors; use float32"),
    ],
)
def test_names_of_no_arithmetic_are_refused(name: Any, message: str) -> None:
    with pytest.raises(UnsupportedArithmeticError, match=message):
        Arithmetic.parse(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tf32": 1}, "arithmetic: tf32=1: must be True or False"),
        ({"mixed": True}, "arithmetic: mixed=True: must be one of bfloat16, float16"),
        ({"emulation": 4}, "rounding 4: must be rounded, product, tf32 or split-k N; "),
        ({"dtype": torch.bfloat16, "mixed": "float16"}, "keeps its parameters in float32; use dtype float32"),
        ({"reduction": True}, "reduction=True must be"),
        ({"reduction": (1, 1)}, "reduction=\\(1, 1\\) must be"),
        ({"reduction": (True, False)}, "without split-K there is nothing to reduce"),
    ],
)
def test_settings_of_no_arithmetic_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArithmeticError, match=message):
        Arithmetic(**{"dtype": torch.float32, **fields})


def test_arithmetic_of_a_dtype() -> None:
    assert Arithmetic("bf16").name == "bfloat16"  # type: ignore[arg-type]
    assert Arithmetic("bf16").dtype is torch.bfloat16  # type: ignore[arg-type]
    assert Arithmetic(torch.float16, emulation="split-k 04").emulation == "split-k 4"
    assert [name for name in ("mixed float16", "mixed bfloat16", "float16") if Arithmetic.parse(name).scaled] == [
        "mixed float16"
    ]
    for make in (Arithmetic, Arithmetic.current):
        with pytest.raises(UnsupportedDtypeError, match=r"torch\.int8.*not supported"):
            make(torch.int8)


def test_products_are_native_mixed_or_emulated() -> None:
    x, weight, bias = (torch.randn(shape, generator=generator(0)) for shape in ((4, 6), (3, 6), (3,)))
    kernel = torch.randn(2, 1, 2, 2, generator=generator(1))
    image = x.view(1, 1, 4, 6)
    plain, mixed = Arithmetic.parse("float32"), Arithmetic.parse("mixed bfloat16")
    assert same_bits(plain.linear(x, weight, bias), F.linear(x, weight, bias))
    assert same_bits(plain.conv2d(image, kernel, padding=1), F.conv2d(image, kernel, padding=1))
    assert same_bits(mixed.linear(x, weight, bias), F.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))
    assert mixed.conv2d(image, kernel).dtype == torch.bfloat16
    emulated = Arithmetic.parse("bfloat16 emulated (split-k 4)")
    x, weight, bias, image, kernel = (tensor.bfloat16() for tensor in (x, weight, bias, image, kernel))
    assert emulated.emulated == Emulation(torch.bfloat16, Rounding(parts=4))
    assert same_bits(emulated.linear(x, weight, bias), linear(emulated.emulated, x, weight, bias))
    assert same_bits(emulated.conv2d(image, kernel), conv2d(emulated.emulated, image, kernel))


def test_the_arithmetic_of_a_model(switches: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    model[0].float().requires_grad_(False)
    assert Arithmetic.of(model).name == "float64"  # of what is trained
    assert Arithmetic.of(model[0]).name == "float32"
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    assert Arithmetic.of(model.half()).name == "float16 full-precision reduction"
    emulated = Arithmetic.parse("float16 emulated (split-k 3)")
    assert emulated.apply(model) is model
    assert Arithmetic.of(model) == Arithmetic.of(model[1]) == emulated
    assert Arithmetic.parse("bfloat16").apply(nn.Linear(1, 1)).weight.dtype == torch.bfloat16


def test_the_arithmetic_of_a_model_whose_layers_differ() -> None:
    """The model's names the layers; a layer's does not, and is what the layer computes with."""
    arithmetic = Arithmetic.parse("bfloat16 emulated (rounded; layer 1 forward: split-k 4)")
    model = arithmetic.apply(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)))
    assert Arithmetic.of(model) == arithmetic
    first, second = (Arithmetic.of(layer) for layer in model)
    assert first.name == "bfloat16 emulated (split-k 4; backward: rounded)"
    assert second.name == "bfloat16 emulated (rounded)"
    x = torch.randn(4, 9, generator=generator(0)).bfloat16()
    for layer, own in zip(model, (first, second), strict=True):
        assert same_bits(layer(x).detach(), own.linear(x, layer.weight, layer.bias).detach())
    for product, factor in ((arithmetic.linear, x), (arithmetic.conv2d, x.view(1, 4, 3, 3))):
        with pytest.raises(EmulationError, match=r"layers are rounded differently; take the emulation of one with layer\("):
            product(factor, factor)
    with pytest.raises(EmulationError, match=r"layer 3 of a model with 2 layers with products; name layers from 1 to 2"):
        Arithmetic.parse("bfloat16 emulated (rounded; layer 3: split-k 4)").apply(model)


_REDUCTIONS = [f"allow_{kind}_reduced_precision_reduction" for kind in ("fp16", "bf16")]


_CUDA: Any = torch.backends.cuda.matmul

# what a version of torch lacks; every skip says which version has it
TREE = hasattr(torch.backends, "fp32_precision")
SPLIT_K = hasattr(_CUDA, f"{_REDUCTIONS[0]}_split_k")
ACCUMULATION = hasattr(_CUDA, "allow_fp16_accumulation")
_HERE = f"torch {torch.__version__} lacks"
needs_tree = pytest.mark.skipif(not TREE, reason=f"{_HERE} torch.backends.fp32_precision, which is in 2.9 and newer")
needs_split_k = pytest.mark.skipif(not SPLIT_K, reason=f"{_HERE} the switch for split-K, which is in 2.10 and newer")
needs_accumulation = pytest.mark.skipif(
    not ACCUMULATION, reason=f"{_HERE} allow_fp16_accumulation, which is in 2.7 and newer"
)


def _float32() -> tuple[Any, ...]:
    """Every switch for the products of float32."""
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    if not TREE:
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32
    owners = [torch.backends, cudnn, mkldnn, _CUDA, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    return tuple(owner.fp32_precision for owner in owners)


@pytest.fixture
def switches() -> Iterator[Callable[[], tuple[Any, ...]]]:
    """Reads every switch that Arithmetic touches, and puts torch back to its defaults."""

    def read() -> tuple[Any, ...]:
        reductions = [(getattr(_CUDA, name), getattr(_CUDA, f"{name}_split_k", True)) for name in _REDUCTIONS]
        return _float32(), *reductions, getattr(_CUDA, "allow_fp16_accumulation", False)

    yield read
    _reset()


def _reset() -> None:
    """PyTorch's defaults; cuDNN's switches, whose default no assignment brings back, are set to what it is."""
    backends: Any = torch.backends
    if TREE:
        backends.fp32_precision = backends.cudnn.fp32_precision = "none"
        backends.mkldnn.set_flags(_fp32_precision="none")
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    if TREE:
        for part in (_CUDA, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn):
            part.fp32_precision = "none"
    for name in _REDUCTIONS:
        setattr(_CUDA, name, True)
    if ACCUMULATION:
        _CUDA.allow_fp16_accumulation = False


def _older() -> str | None:
    """The older switch for products, where torch lets it be read."""
    with contextlib.suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return None


def _set_old(precision: str) -> Callable[[], None]:
    return lambda: torch.set_float32_matmul_precision(precision)


def _set_old_convolutions() -> None:
    torch.backends.cudnn.allow_tf32 = False


def _set_new() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def _set_new_convolutions() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def _set_cpu_convolutions() -> None:
    torch.backends.mkldnn.conv.fp32_precision = "bf16"


def _set_global(value: str) -> Callable[[], None]:
    def set_it() -> None:
        torch.backends.fp32_precision = value  # type: ignore[attr-defined]

    return set_it


def _set_cudnn() -> None:
    torch.backends.cudnn.fp32_precision = "tf32"


def _set_onednn() -> None:
    torch.backends.mkldnn.set_flags(_fp32_precision="bf16")


def _set_cpu_products() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def _set_reductions(fp16: Any, bf16: Any) -> Callable[[], None]:
    def set_both() -> None:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = fp16
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = bf16

    return set_both


def _set_accumulation() -> None:
    torch.backends.cuda.matmul.allow_fp16_accumulation = True


STATES = {
    "default": lambda: None, "highest": _set_old("highest"), "high": _set_old("high"), "medium": _set_old("medium"),
    "reductions": _set_reductions(False, True), "older convolution switch": _set_old_convolutions,
}  # fmt: skip
TREE_STATES = {
    "newer switch": _set_new, "newer convolution switch": _set_new_convolutions, "CPU convolutions": _set_cpu_convolutions,
    "CPU products": _set_cpu_products, "global TF32": _set_global("tf32"), "global bfloat16": _set_global("bf16"),
    "global IEEE": _set_global("ieee"), "cuDNN TF32": _set_cudnn, "oneDNN bfloat16": _set_onednn,
}  # fmt: skip
PAIRS = {"pairs": _set_reductions((False, False), (False, True))}
WIDTHS = {"16-bit accumulation": _set_accumulation}
ALL_STATES = STATES | TREE_STATES | PAIRS | WIDTHS
EVERY_STATE = [
    *STATES,
    *(pytest.param(name, marks=needs_tree) for name in TREE_STATES),
    *(pytest.param(name, marks=needs_split_k) for name in PAIRS),
    *(pytest.param(name, marks=needs_accumulation) for name in WIDTHS),
]
ACTIVE = [
    "float32",
    "float32 TF32",
    "float16",
    pytest.param("float16 strict", marks=needs_split_k),
    "bfloat16 full-precision reduction",
    pytest.param("mixed float16 strict", marks=needs_split_k),
]


def _put_back(name: str, state: str, read: Callable[[], Any]) -> bool:
    """Whether active() puts every switch back, after an error too."""
    ALL_STATES[state]()
    before, old = read(), _older()

    def run() -> None:
        arithmetic = Arithmetic.parse(name)
        with arithmetic.active():
            inside = read()
            if TREE:
                assert set(inside[0]) == {"tf32" if arithmetic.tf32 else "ieee"}  # strict float32 on the CPU, too
            else:
                assert inside[0] == (("high", True) if arithmetic.tf32 else ("highest", False))
            assert inside[1:] == (arithmetic.reduction, arithmetic.reduction, False)
            assert old is None or _older() == ("high" if arithmetic.tf32 else "highest")
            F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2))  # reads the switches of all devices
            for dtype, device in itertools.product(DTYPES, ("cpu", "cuda")):
                found = Arithmetic.current(dtype, device)
                if arithmetic.tf32 and (dtype, device, TREE) == (torch.float32, "cpu", False):
                    assert found.name == "float32 with TF32 products"  # a CPU has no other switch before torch 2.9
                    continue
                reduction = arithmetic.reduction if dtype.itemsize == 2 else (True, True)
                assert found == Arithmetic(dtype, tf32=arithmetic.tf32 and dtype == torch.float32, reduction=reduction)
            raise KeyError

    with pytest.raises(KeyError):
        run()
    return read() == before and _older() == old


@pytest.mark.parametrize("state", EVERY_STATE)
@pytest.mark.parametrize("name", ACTIVE)
def test_active_sets_the_switches_and_puts_them_back(state: str, name: str, switches: Any) -> None:
    assert _put_back(name, state, switches)


@needs_split_k
def test_a_pair_that_comes_back_as_a_bool_is_noticed(switches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: the switch is read as torch gives it, so that split-K is allowed when it is put back."""
    assert _put_back("float16", "pairs", switches)
    read = numerics_arithmetic._reduction
    calls = itertools.count()
    monkeypatch.setattr(
        numerics_arithmetic,
        "_reduction",
        lambda name: read(name)[0] if next(calls) < 2 else read(name),  # what active() keeps, not what current() reads
    )
    assert not _put_back("float16", "pairs", switches)


_LATER = (
    "backends.fp32_precision = 'ieee'",
    "backends.fp32_precision = 'tf32'",
    "backends.cudnn.fp32_precision = 'ieee'",
    "backends.cudnn.fp32_precision = 'tf32'",
    "backends.cudnn.fp32_precision = 'none'; backends.fp32_precision = 'none'",
)


# in a process each: no assignment brings the default of cuDNN's switches back
@needs_tree
def test_a_switch_that_followed_another_follows_it_afterwards() -> None:
    done = forked.python("-m", "tests.helpers.switches_after", *_LATER, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


_DEFAULT = "float32 with TF32 convolutions, TF32 recurrences"
#: What the switches of a state are called, on a CPU and on CUDA.
NAMES = {
    **{name: ["float32", _DEFAULT] for name in ("default", "highest", "reductions", *PAIRS, *WIDTHS)},
    "high": ["float32 with TF32 products", "float32 TF32"],
    "medium": ["float32 with bfloat16 products", "float32 TF32"],
    "older convolution switch": ["float32", "float32"],
    "newer switch": ["float32", "float32 TF32"],
    "newer convolution switch": ["float32", "float32 with TF32 recurrences"],
    "CPU convolutions": ["float32 with bfloat16 convolutions", _DEFAULT],
    "CPU products": ["float32 with bfloat16 products", _DEFAULT],
    "global TF32": ["float32 TF32", "float32 TF32"],
    "global bfloat16": ["float32 with bfloat16 products, bfloat16 convolutions, bfloat16 recurrences", _DEFAULT],
    "global IEEE": ["float32", _DEFAULT],  # cuDNN's explicit TF32 of _reset
    "cuDNN TF32": ["float32", "float32 TF32"],
    "oneDNN bfloat16": ["float32 with bfloat16 products, bfloat16 convolutions, bfloat16 recurrences", _DEFAULT],
}


@pytest.mark.parametrize("state", EVERY_STATE)
def test_current_reads_what_the_user_set(state: str, switches: Any) -> None:
    _reset()
    ALL_STATES[state]()
    assert [Arithmetic.current(torch.float32, device).name for device in ("cpu", "cuda")] == NAMES[state]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ["float32", "float32 TF32", "bfloat16 full-precision reduction"])
def test_versions_without_the_tree_have_two_switches(
    state: str, name: str, switches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch before 2.9 and 2.10, whose switches newer versions still have."""
    _reset()
    monkeypatch.setattr(numerics_precision, "_TREE", False)
    monkeypatch.setattr(numerics_arithmetic, "_SPLIT_K", False)
    STATES[state]()

    def read() -> tuple[Any, ...]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, *switches()[1:]

    arithmetic, before = Arithmetic.parse(name), read()
    assert [Arithmetic.current(torch.float32, device).name for device in ("cpu", "cuda")] == NAMES[state]
    with arithmetic.active():
        word = "high" if arithmetic.tf32 else "highest"
        assert read() == (word, arithmetic.tf32, arithmetic.reduction, arithmetic.reduction, False)
        assert Arithmetic.current(arithmetic.dtype, "cuda") == arithmetic
    assert read() == before


def test_without_a_switch_for_split_k_the_strict_arithmetic_is_refused(
    switches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics_arithmetic, "_SPLIT_K", False)
    before = switches()
    message = (
        f"arithmetic 'mixed float16 strict': torch {torch.__version__} has no switch that forbids split-K; use torch 2.10 "
        "or newer, or 'mixed float16 full-precision reduction'"
    )
    with (
        pytest.raises(UnsupportedArithmeticError, match=re.escape(message)),
        Arithmetic.parse("mixed float16 strict").active(),
    ):
        pass
    assert switches() == before


def test_current_reads_16_bit_switches(switches: Any) -> None:
    _CUDA.allow_bf16_reduced_precision_reduction = False  # a bool leaves split-K allowed
    assert Arithmetic.current(torch.bfloat16).name == "bfloat16 full-precision reduction"
    assert Arithmetic.current(torch.float16).name == "float16"


@needs_split_k
def test_current_reads_16_bit_switches_that_are_pairs(switches: Any) -> None:
    _CUDA.allow_bf16_reduced_precision_reduction = (False, False)
    assert Arithmetic.current(torch.bfloat16).name == "bfloat16 strict"
    _set_accumulation()
    assert Arithmetic.current(torch.float16, "cpu").name == "float16"
    assert Arithmetic.current(torch.float16, "cuda").name == "float16 with 16-bit accumulation"
    assert Arithmetic.current(torch.bfloat16, "cuda").name == "bfloat16 strict"


@needs_tree
def test_switches_of_no_named_arithmetic_are_a_label_only(switches: Any) -> None:
    """Of a linear layer by itself, convolutions play no role."""
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    layer = nn.Linear(2, 2)
    found = Arithmetic.of(nn.Sequential(layer))
    assert found != Arithmetic.of(layer) == Arithmetic.parse("float32")
    assert str(found) == "float32 with bfloat16 convolutions"
    before = switches()
    with pytest.raises(UnsupportedArithmeticError, match="a label of switches"), found.active():
        pass
    assert switches() == before
    with pytest.raises(UnsupportedArithmeticError, match="must be a dtype"):
        Arithmetic.parse(found.name)
    with pytest.raises(UnsupportedArithmeticError, match="mixture"):
        Arithmetic(torch.float32, mixture="TF32 convolutions")  # type: ignore[arg-type]


@needs_split_k
@pytest.mark.parametrize(("name", "inside"), [("bfloat16 strict", "cublaslt"), ("bfloat16", "cublas")])
def test_a_forbidden_split_chooses_the_library_that_obeys(
    name: str, inside: str, monkeypatch: pytest.MonkeyPatch, switches: Callable[[], tuple[Any, ...]]
) -> None:
    """torch 2.11 raises in products of cuBLAS where split-K is forbidden."""
    library = ["cublas"]

    def preferred(chosen: str | None = None) -> str:
        if chosen is not None:
            library[0] = chosen
        return library[0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", preferred)
    with Arithmetic.parse(name).active():
        assert library == [inside]
    assert library == ["cublas"]
    with contextlib.suppress(ZeroDivisionError), Arithmetic.parse(name).active():
        raise ZeroDivisionError
    assert library == ["cublas"]
