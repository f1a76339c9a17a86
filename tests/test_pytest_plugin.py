"""The plugin: what it costs, what it registers, and the summary with and without xdist."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from relucheck.results.tables import render, tally_tables
from relucheck.results.tally import Row, Tally

pytest_plugins = ["pytester"]


class _Seen:
    """What a tally reads of a comparison."""

    def __init__(self, outcome: str, hits: int = 0, activations: int = 10) -> None:
        self.outcome, self.hit_count, self.activation_count = outcome, hits, activations


COUNTING = """
    import pytest

    class Seen:
        def __init__(self, outcome, hits):
            self.outcome, self.hit_count, self.activation_count = outcome, hits, 1000

    @pytest.mark.parametrize("index", range(8))
    def test_counts(index, relucheck_tally):
        relucheck_tally.observe("float32", Seen("agree", 0), size=1, text="agreed")
        relucheck_tally.observe("bfloat16", Seen("bifurcate", 3), size=100 - index, text=f"network {index}")
        relucheck_tally.tried("a_property")
        relucheck_tally.killed("a_fault", "a_property")
"""


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    program = """
        import sys
        import pytest
        before = set(sys.modules)
        import relucheck.pytest_plugin
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        heavy = new & {"torch", "torchvision", "numpy", "scipy", "hypothesis", "rich"}
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_lazy_names_are_the_modules_own() -> None:
    import relucheck
    from relucheck.activations import kinks, modules

    assert relucheck.ReLU is modules.ReLU
    assert relucheck.Kink is kinks.Kink
    assert set(relucheck.__all__) <= set(dir(relucheck))
    with pytest.raises(AttributeError, match="no attribute 'Relu'"):
        _ = relucheck.Relu


def _run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    # inner runs know nothing of this project's configuration; the plugin is loaded by its entry point
    return pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider", *arguments)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_summary_adds_up(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    pytester.makepyfile(COUNTING)
    result = _run(pytester, *workers)
    result.assert_outcomes(passed=8)
    text = result.stdout.str()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│ ")]
    assert ["float32", "8", "8", "0", "0", "0.00"] in rows
    assert ["bfloat16", "8", "0", "8", "0", "3,000.00"] in rows
    assert ["a_property", "8", "a_fault"] in rows
    assert text.count("smallest bifurcating example") == 1
    assert "network 7" in text, "the smallest one has size 93"


def test_summary_can_lose_a_worker(pytester: pytest.Pytester) -> None:
    """Seeded fault for the test above: a tally that does not travel would be noticed."""
    pytester.makepyfile(COUNTING)
    pytester.makeconftest(
        """
        import pytest

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item):
            report = yield
            if "gw1" == getattr(item.config, "workerinput", {}).get("workerid"):
                report.__dict__.pop("relucheck_tally", None)
            return report
        """
    )
    text = _run(pytester, "-n", "2").stdout.str()
    assert "│ float32  │        8 │" not in text


def test_no_summary_where_nothing_counted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    result = _run(pytester)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*relucheck =*")


def test_failed_test_still_counts(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_fails(relucheck_tally):
            relucheck_tally.tried("a_property", 5)
            assert False
        """
    )
    result = _run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a_property*5*"])


def test_markers_are_registered(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.bifurcation
        @pytest.mark.gpu_training
        @pytest.mark.benchmark
        def test_marked(): pass
        """
    )
    _run(pytester, "--strict-markers").assert_outcomes(passed=1)
    result = _run(pytester, "--markers")
    result.stdout.fnmatch_lines(
        ["@pytest.mark.bifurcation: *", "@pytest.mark.gpu_training: *", "@pytest.mark.benchmark: *"]
    )


def test_a_failing_property_prints_a_program_and_a_reproducer(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from hypothesis import given, note, settings, HealthCheck
        from hypothesis import strategies as st
        from relucheck.networks.strategies import examples

        @settings(max_examples=20, deadline=None, database=None, print_blob=True, derandomize=True)
        @given(data=st.data())
        def test_false(data):
            example = data.draw(examples("bfloat16", aims=("dead unit",)), label="example")
            note(example.script((0.0, 0.5)))
            assert len(example.network.widths) < 2
        """
    )
    result = _run(pytester)
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "from relucheck.bifurcation.compare import compare" in text
    assert "Example(dtype='bfloat16'" in text
    assert "widths=(1, 1)" in text, "shrinks to the smallest depth that fails"
    assert "reproduce_failure" in text


def test_data_root_option(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from relucheck.data import data_root

        def test_root(tmp_path):
            assert str(data_root()).endswith("digits here")
        """
    )
    _run(pytester, "--relucheck-data", "digits here").assert_outcomes(passed=1)
    pytester.makefile(".txt", afile="no folder")
    result = _run(pytester, "--relucheck-data", "afile.txt")
    result.stderr.fnmatch_lines(["*--relucheck-data=afile.txt: is a file, not a data root; pass the folder*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_tally_survives_json_and_addition() -> None:
    one, other = Tally(), Tally()
    one.observe("float16", _Seen("non-finite", hits=2), size=3, text="never shown")
    one.observe("float16", _Seen("bifurcate", hits=2), size=9, text="larger")
    other.observe("float16", _Seen("bifurcate", hits=1), size=4, text="smaller")
    other.observe("float64", _Seen("agree"), size=1, text="agrees")
    other.killed("fault", "property")
    other.killed("fault", "property")
    one.add(Tally.from_json(other.to_json()))
    mine = one.rows["generated examples"]
    assert mine["float16"] == Row(networks=3, agree=0, bifurcate=2, nonfinite=1, hits=5, activations=30)
    assert mine["float64"].networks == 1
    assert one.smallest == (4, "smaller")
    assert one.kills == {"fault": ["property"]}
    assert Tally.from_json(one.to_json()) == one
    assert not Tally()


@pytest.mark.parametrize(("width", "color"), [(60, False), (100, True)])
def test_tables_fit_the_terminal(width: int, color: bool) -> None:
    tally = Tally()
    tally.observe("bfloat16", _Seen("bifurcate", 1), size=1, text="x = 1\n# a long line" + "." * 300)
    tally.observe("strange", _Seen("agree"), size=1, text="", population="others")
    tally.tried("a_property_with_a_rather_long_name_to_wrap", 12345)
    text = render(*tally_tables(tally), width=width, color=color)
    assert ("\x1b[" in text) == color
    if not color:
        assert max(len(line) for line in text.splitlines() if not line.startswith("# a long line")) <= width
        assert "\n# a long line" + "." * 300 + "\n" in text, "code is not wrapped"
    assert "strange" in text
