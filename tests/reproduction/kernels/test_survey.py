"""The survey finds seeded roundings in its kernels, restores the switches, and is written and read as JSON and Markdown."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from relucheck.__main__ import main
from relucheck.errors import MISSING, OK, UNWRITABLE, USAGE
from relucheck.networks.network import Network
from relucheck.numerics import arithmetic as arithmetics
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.emulation import Emulation, linear
from relucheck.reproduction.kernels import run as kernels_run
from relucheck.reproduction.kernels import survey as surveyed
from relucheck.reproduction.kernels.calls import Calls, calls
from relucheck.reproduction.kernels.report import conclusion, markdown, shown, tables
from relucheck.reproduction.kernels.survey import DTYPES, Survey, states, survey
from relucheck.results.tables import render

CPU = torch.device("cpu")
COMMITTED = Path(__file__).parents[3] / "reports" / "kernels"


@pytest.fixture(scope="module")
def collected() -> Calls:
    return calls([Network("mlp", (6,), batch_norm=True, input_shape=(784,))])


@pytest.fixture(scope="module")
def native(collected: Calls) -> Survey:
    """What this CPU computes."""
    return survey(collected, [torch.bfloat16], CPU)


@pytest.fixture
def cuda_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Survey the CPU in all states that a CUDA device has."""
    monkeypatch.setattr(surveyed, "states", lambda dtype, device: states(dtype, torch.device("cuda")))


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that splits K in forward, in bfloat16 unless the switches forbid it, and has TF32."""
    real = F.linear

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        name = Arithmetic.current(x.dtype, "cuda", products_only=True).name
        seeded = {
            "bfloat16": "split-k 4",
            "bfloat16 full-precision reduction": "split-k 4 in place",
            "float32 TF32": "tf32",
        }
        if name not in seeded or x.shape[1] < 100:
            return real(x, weight, bias)
        return linear(_split(x.dtype, seeded[name]), x, weight, bias)

    monkeypatch.setattr(F, "linear", product)


def _split(dtype: torch.dtype, forward: str) -> Emulation:
    """Gradients are rounded once."""
    return Emulation.parse(dtype, f"rounded; forward: {forward}")


def test_a_cpu_has_one_state_and_cuda_has_those_of_its_switches() -> None:
    assert [one.name for dtype in DTYPES for one in states(dtype, CPU)] == ["bfloat16", "float16", "float32", "float64"]
    names = [one.name for one in states(torch.bfloat16, torch.device("cuda"))]
    assert names == ["bfloat16", "bfloat16 full-precision reduction", "bfloat16 strict"]
    assert [one.name for one in states(torch.float32, torch.device("cuda"))] == ["float32", "float32 TF32"]
    assert [one.name for one in states(torch.float64, torch.device("cuda"))] == ["float64"]


@pytest.mark.usefixtures("seeded", "cuda_states")
def test_seeded_roundings_are_found_in_their_states(collected: Calls) -> None:
    found = survey(collected, [torch.bfloat16, torch.float32], CPU)
    first = {
        one.arithmetic: one.equal[0]
        for one in found.findings
        if (one.layer, one.direction) == ("784 → 6", "forward") and one.samples == 128
    }
    assert first == {
        "bfloat16": "split-k 4",
        "bfloat16 full-precision reduction": "split-k 4 in place",
        "bfloat16 strict": "rounded",
        "float32": "rounded",
        "float32 TF32": "tf32",
    }
    others = [one for one in found.findings if (one.layer, one.direction) != ("784 → 6", "forward")]
    assert {one.equal[0] for one in others} == {"rounded"}
    lines = conclusion(found)
    assert "  `split-k 4`: forward of 784 → 6" in lines
    assert "In float32 (no TF32), all 5 products equal `rounded`." in lines


@pytest.mark.usefixtures("cuda_states")
def test_switches_are_restored(collected: Calls) -> None:
    def switches() -> list[object]:
        names = [Arithmetic.current(dtype, device).name for dtype in DTYPES for device in ("cuda", "cpu")]
        return [*names, torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()]

    with Arithmetic.parse("bfloat16 strict").active():
        before = switches()
        survey(collected, DTYPES, CPU)
        assert switches() == before


@pytest.mark.usefixtures("cuda_states")
def test_a_torch_that_knows_only_a_bool_is_said_so(collected: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetics, "_SPLIT_K", False)
    found = survey(collected, [torch.float16], CPU)
    assert {one.arithmetic for one in found.findings} == {"float16", "float16 full-precision reduction"}
    (note,) = found.notes
    assert "'float16 strict'" in note
    assert "no switch that forbids split-K" in note
    assert note in conclusion(found)


def test_zeros_are_those_of_the_dtype_and_of_float64(
    collected: Calls, native: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seeded fault: a device that flushes small outputs to 0, but not those of float64."""
    real = F.linear

    def flushed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result = real(x, weight, bias)
        return result if x.dtype == torch.float64 else torch.where(result.abs() < 0.1, 0, result)

    def zeros(found: Survey) -> tuple[int, int]:
        one = next(one for one in found.findings if (one.layer, one.direction) == ("784 → 6", "forward"))
        assert one.outputs == 128 * 6
        return one.zeros, one.zeros_float64

    assert zeros(native) == (0, 0)
    monkeypatch.setattr(F, "linear", flushed)
    in_dtype, in_float64 = zeros(survey(collected, [torch.bfloat16], CPU))
    assert in_dtype > 50
    assert in_float64 == 0


def test_batch_norm_that_is_float32_rounded_once_does_not_differ(
    collected: Calls, native: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU's native one is none."""
    real = F.batch_norm

    def once(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, training: bool) -> Tensor:
        return real(x.float(), mean.float(), variance.float(), weight.float(), bias.float(), training).to(x.dtype)

    monkeypatch.setattr(F, "batch_norm", once)
    found = survey(collected, [torch.bfloat16], CPU)
    assert [one.direction for one in found.norms] == ["forward", "input gradient", "weight gradient", "bias gradient"]
    assert {one.differs for one in found.norms if one.direction != "input gradient"} == {0.0}
    assert "batch norm is not float32 rounded once" in "\n".join(conclusion(native))


def test_results_on_the_smaller_mini_batch_are_kept_where_they_differ(
    collected: Calls, native: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {one.samples for one in native.findings} == {128}
    real = F.linear

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(x) != 96 or x.shape[1] < 100:
            return real(x, weight, bias)
        return linear(_split(x.dtype, "split-k 2"), x, weight, bias)

    monkeypatch.setattr(F, "linear", product)
    found = survey(collected, [torch.bfloat16], CPU)
    (other,) = [one for one in found.findings if one.samples == 96]
    assert other.equal == ("split-k 2", "split-k 2 wide")
    assert "A mini-batch of 96 changes kernels or rounding: forward of 784 → 6." in conclusion(found)


@pytest.mark.usefixtures("cuda_states")
def test_kernels_of_cuda_are_named(collected: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake profiler links each operator to a kernel, as CUDA does."""

    @contextlib.contextmanager
    def profiler(device: torch.device) -> Iterator[Any]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            yield SimpleNamespace(events=lambda: [_linked(event) for event in profile.events()])

    monkeypatch.setattr(surveyed.profiling, "profiler", profiler)
    found = survey(collected, [torch.bfloat16], CPU)
    assert {one.kernels for one in found.findings if one.direction == "forward"} == {("void gemm<addmm>(Params)",)}
    assert {one.kernels for one in found.findings if one.direction != "forward"} == {("void gemm<mm>(Params)",)}
    assert "1. `void gemm<addmm>(Params)`" in markdown(found)
    assert "gemm<addmm>" in render(*shown(found), width=80, color=False)


def _linked(event: Any) -> Any:
    product = event.name in ("aten::addmm", "aten::mm")
    kernel = SimpleNamespace(name=f"void gemm<{event.name[6:]}>(Params)")
    return SimpleNamespace(
        name=event.name,
        device_type=event.device_type,
        time_range=event.time_range,
        kernels=[kernel] if product else [],
    )


def test_a_profiler_that_sees_nothing_is_said_so(collected: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveyed.profiling, "names", lambda events, label: ())
    found = survey(collected, [torch.float32], CPU)
    assert any("did not see all kernels" in line for line in conclusion(found))
    assert {row[-1] for row in tables(found)[0].rows} == {"not seen"}


def test_a_survey_is_read_from_its_json(native: Survey) -> None:
    assert Survey.from_json(json.loads(json.dumps(native.to_json()))) == native


def test_tables_fit_80_columns(collected: Calls) -> None:
    text = render(*shown(survey(collected, DTYPES, CPU)), width=80, color=False)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*.json")), ids=lambda path: path.stem)
def test_committed_reports_are_those_of_their_json(path: Path) -> None:
    found = Survey.from_json(json.loads(path.read_text(encoding="utf-8")))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(found)
    assert path.stem.startswith(kernels_run.file_name(found))  # a survey of some dtypes is named after them, too


# ---------------------------------------------------------------- the command


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_run, "networks", lambda: (Network("mlp", (6,)),))


@pytest.mark.usefixtures("small")
def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--device", "cpu", "--dtypes", "float32, bf16", "--out", str(tmp_path / "new")]) == OK
    out = capsys.readouterr().out
    assert "Device and versions: relucheck" in out
    assert f"report: {tmp_path / 'new' / 'cpu.md'}" in out
    text = (tmp_path / "new" / "cpu.md").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "new" / "cpu.json").read_text(encoding="utf-8"))
    assert text == markdown(Survey.from_json(content))
    assert {one["arithmetic"] for one in content["findings"]} == {"float32", "bfloat16"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dtypes", "float8"], USAGE, "dtype 'float8' is not supported"),
        (["--dtypes", ""], USAGE, "--dtypes '': a name is missing"),
        (["--dtypes", ",,"], USAGE, "--dtypes ',,': a name is missing"),
        (["--dtypes", "float32,"], USAGE, "--dtypes 'float32,': a name is missing"),
        (["--device", "nowhere"], MISSING, "device 'nowhere' is not available here"),
        (
            ["--device", "meta"],
            MISSING,
            "device 'meta': experiments and their kernels run on cpu and cuda; use one of these",
        ),
    ],
)
def test_bad_input_is_refused(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file", "file/in-it", "/proc/x", "read-only"])
def test_a_folder_that_cannot_be_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said before anything runs."""

    def no_survey(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the folder has to be checked first")

    def read_only(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(kernels_run, "survey", no_survey)
    if name == "read-only":  # root may write to every folder
        monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / name)  # "/proc/x" stays itself
    assert main(["kernels", "--device", "cpu", "--dtypes", "float64", "--out", folder]) == UNWRITABLE
    shown = capsys.readouterr().err
    assert f"--out {folder}: files cannot be written there (" in shown
    assert "name another folder" in shown


@pytest.mark.usefixtures("small")
def test_progress_is_printed_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["kernels", "--device", "cpu", "--dtypes", "float64,float32"]
    assert main(arguments) == OK
    lines = capsys.readouterr().err.splitlines()
    wanted = [
        f"kernels: {name}, mini-batches of {size}: finished [" for name in ("float64", "float32") for size in (128, 96)
    ]
    assert [line for line, start in zip(lines, wanted, strict=True) if not line.startswith(start)] == []
    assert main([*arguments, "--quiet"]) == OK
    assert capsys.readouterr().err == ""


def test_a_gpu_names_its_files() -> None:
    environment = {"kind": "cuda", "model": "NVIDIA H200"}
    assert kernels_run.file_name(Survey(environment, (), ())) == "nvidia-h200"


@pytest.mark.gpu_training
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda(collected: Calls) -> None:
    """Kernels are named, and the factors of TF32 are seen."""
    found = survey(collected, DTYPES, torch.device("cuda"))
    assert all(one.kernels for one in found.findings)
    assert not any(name.startswith("aten::") for one in found.findings for name in one.kernels)
    exact = [one for one in found.findings if one.arithmetic in ("float32", "float64")]
    assert {one.equal[:1] for one in exact} == {("rounded",)}
