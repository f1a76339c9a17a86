"""A search as a unit of work, what is checked before it starts, and that reading results needs no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from relucheck.bifurcation.wiring import WiringError
from relucheck.errors import SettingsError
from relucheck.networks import Network
from relucheck.networks.network import KINDS, ActivationFactory, Kind
from relucheck.results.store import StoreError
from relucheck.search import Space, read, unit
from relucheck.search.records import Records
from relucheck.search.trial import TrialReport
from relucheck.search.units import check, work
from tests.helpers import forked
from tests.search.cases import SEARCH, changed, epoch, failing

#: The published residual network, whose blocks do not get the subgradient.
STEM_ONLY = Network("resnet-convolved-skips-stem-only", (2, 4), activation="relu6")


def deaf(network: Network, activation: ActivationFactory) -> nn.Module:
    """A network that ignores the activation that it is given, as the published MobileNet ignores alpha and beta."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.ReLU6(), nn.Linear(4, 10))


def test_a_search_is_refused_before_it_starts_if_subgradients_do_not_reach_all_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "deaf", Kind(deaf, flat=True))
    refused = {
        STEM_ONLY: "blocks.0.activation1 (ReLU6): ignores; at 0 the gradient is the same for 0.25 and 0.75",
        Network("deaf", (4,), activation="relu6"): "  2 (ReLU6): ignores; at 0 the gradient is the same",
    }
    for network, line in refused.items():
        search = changed(SEARCH, network=network)
        with pytest.raises(WiringError, match="the subgradient does not reach every activation:") as caught:
            work(search, tmp_path / network.kind, None, "cpu", None, 1, 0.0, 1, lambda steps, note: None, failing)
        assert line in str(caught.value)
        assert all(wire.verdict == "ignores" for wire in caught.value.wires)
    assert len(caught.value.wires) == 1


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16 emulated (product)", "mixed bfloat16"])
@pytest.mark.parametrize("rule", ["chain", "injected"])
def test_networks_that_hand_their_subgradients_on_pass(rule: str, arithmetic: str) -> None:
    check(changed(SEARCH, rule=rule, arithmetic=arithmetic))
    check(changed(SEARCH, rule=rule, arithmetic=arithmetic, network=Network("residual", (4, 4), activation="relu6")))


def test_the_published_mobilenet_passes() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed (extra reproduce)")
    from relucheck.networks.mobilenet import MOBILENET_V3_SMALL

    network = Network("mobilenet-v3-small", MOBILENET_V3_SMALL, activation="relu6", batch_norm=True, classes=1000)
    check(changed(SEARCH, network=network))


def test_the_control_search_has_nothing_to_hand_on() -> None:
    check(changed(SEARCH, network=STEM_ONLY, space=Space().default))


def test_a_search_is_a_unit_that_runs_alone_and_counts_its_steps(tmp_path: Path) -> None:
    steps = [settings.every for settings in map(SEARCH.settings, SEARCH.draws)]
    assert set(steps) == {8, 13}
    new = unit(SEARCH, tmp_path, name="E7 tuned")
    assert (new.name, new.alone, new.steps, new.done) == ("E7 tuned", True, 4 * sum(steps), 0)
    assert list(tmp_path.iterdir()) == []
    # Ray gives a trial a quarter of a GPU where it trains on one
    assert [unit(SEARCH, tmp_path, device=device).arguments[-2] for device in ("cpu", "cuda")] == [0.0, 0.25]
    records = Records(SEARCH, tmp_path)
    for number in (1, 2):
        records.add(SEARCH.draws[0], TrialReport(epoch(number), None, 1.0, {}), number == 2)
    records.add(SEARCH.draws[1], TrialReport(epoch(1), None, 1.0, {}), False)
    assert unit(SEARCH, tmp_path).done == 4 * steps[0] + steps[1]


def test_a_search_that_has_ended_does_nothing(tmp_path: Path) -> None:
    search = changed(SEARCH, trials=1, network=STEM_ONLY)  # which would be refused
    Records(search, tmp_path).add(search.draws[0], TrialReport(epoch(4), "finished", 1.0, {}), False)
    done = unit(search, tmp_path)
    assert done.steps == done.done
    done.work(*done.arguments, failing)
    assert read(tmp_path, search).complete  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus": 0}, "cpus=0: must be a whole number of at least 1"),
        ({"gpus": -0.5}, "gpus=-0.5: must be a finite number at least 0"),
        (
            {"gpus": 0.0, "device": "cuda"},
            "gpus=0.0 with device='cuda': Ray hides GPUs from trials that ask for none; use 0.25",
        ),
        ({"at_once": 0}, "at_once=0: must be a whole number of at least 1"),
        ({"device": "cuda:1"}, "device='cuda:1': must be cpu or cuda; Ray chooses the GPU of each trial"),
    ],
)
def test_bad_numbers_and_devices_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        unit(SEARCH, tmp_path, **options)


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    Records(SEARCH, tmp_path)
    with pytest.raises(StoreError, match="holds another search: its trials is 4, this search's is 5; name another folder"):
        unit(changed(SEARCH, trials=5), tmp_path)


def test_settings_and_results_need_no_ray() -> None:
    program = "import sys, relucheck.search, relucheck.search.units; sys.exit('ray' in sys.modules)"
    assert forked.python("-c", program).returncode == 0
