"""A device that is not there is one short error, however long torch's own is."""

from __future__ import annotations

import pytest
import torch

from relucheck.errors import DeviceError
from relucheck.numerics.devices import available


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Could not run 'aten::empty'. This could be because. " + 100 * "CPU, ", "Could not run 'aten::empty'"),
        ("Found no driver\nat all. Really", "Found no driver"),
        ("Torch 2.15 is not compiled with XPU", "Torch 2.15 is not compiled with XPU"),
    ],
)
def test_torchs_first_sentence_is_the_reason(message: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*arguments: object, **options: object) -> None:
        raise NotImplementedError(message)  # what torch raises for a backend that this build lacks

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(DeviceError) as raised:
        available("mps")
    assert str(raised.value) == f"device 'mps' is not available here: {reason}; use device 'cpu'"


@pytest.mark.parametrize("name", ["mps", "xpu", "hpu", "nowhere", "cuda:99"])
def test_no_name_of_a_device_gives_a_long_error(name: str) -> None:
    said = ""
    try:
        available(name)
    except DeviceError as error:  # some machine may have the device
        said = str(error)
    assert len(said) < 300
    assert "\n" not in said
