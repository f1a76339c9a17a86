"""Images held out are drawn from the seed, are trained on by nobody, and take the place of the test images."""

from __future__ import annotations

import pytest
import torch

from relucheck import data
from relucheck.errors import SettingsError
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training.engine import executor_of, train, units
from relucheck.training.settings import Settings
from relucheck.training.splits import split_of
from tests.helpers.training_case import SETTINGS, changed

CPU = torch.device("cpu")
HELD_OUT = changed(SETTINGS, validation=0.25, test_samples=None)


def _both(settings: Settings) -> list[torch.Tensor]:
    return [split_of(settings, split, None, CPU).images.flatten(1) for split in ("train", "test")]


@pytest.mark.parametrize("seed", [3, 4])
def test_every_image_is_on_one_side_in_file_order(seed: int) -> None:
    trained, held_out = _both(HELD_OUT.of_seeds([seed]))
    assert (len(trained), len(held_out)) == (192, 64)
    images = data.load("digits", "train").images[:256]
    every = data.scale(images, HELD_OUT.arithmetic.dtype, "flat", CPU)
    places = [[int((every == row).all(1).nonzero()[0]) for row in side] for side in (trained, held_out)]
    assert sorted(places[0] + places[1]) == list(range(256))
    assert all(side == sorted(side) for side in places)


def test_labels_belong_to_their_images() -> None:
    group = HELD_OUT.of_seeds([3])
    images, labels = data.load("digits", "train").images[:256], data.load("digits", "train").labels[:256]
    every = data.scale(images, HELD_OUT.arithmetic.dtype, "flat", CPU)
    side = split_of(group, "test", None, CPU)
    found = [int(labels[(every == row).all(1).nonzero()[0]]) for row in side.images.flatten(1)]
    assert found == side.labels.tolist()


def test_each_seed_draws_others_and_the_same_again() -> None:
    one, other = (_both(HELD_OUT.of_seeds([seed]))[1] for seed in (3, 4))
    assert not torch.equal(one, other)
    assert torch.equal(one, _both(HELD_OUT.of_seeds([3]))[1])
    with pytest.raises(SettingsError, match=r"validation=0.25 with the seeds 3, 4: each seed holds out other images"):
        split_of(HELD_OUT, "train", None, CPU)


@pytest.mark.parametrize("name", ["bfloat16", "float16 strict", "mixed bfloat16"])
def test_native_16_bit_products_are_forked_on_cuda(name: str) -> None:
    """Where batched ones heed no switch; the same emulated, and on a CPU, can be stacked."""
    settings = changed(SETTINGS, arithmetic=Arithmetic.parse(name))
    assert executor_of(settings, "stacked", "cuda:0") == "forking"
    assert executor_of(settings, "stacked", "cpu") == "stacked"
    emulated = changed(SETTINGS, arithmetic=Arithmetic.parse("bfloat16 emulated (rounded)"))
    assert executor_of(emulated, "stacked", "cuda") == "stacked"


def test_seeds_that_hold_out_images_train_one_by_one(tmp_path: object) -> None:
    assert executor_of(HELD_OUT, "stacked", "cpu") == "forking"
    assert executor_of(SETTINGS, "stacked", "cpu") == "stacked"
    result = train(HELD_OUT, progress=False)
    assert [member.activations[0][0] for member in result.members] == [192 * 16] * len(result.members)
    batches = {len(epoch.test_batch_accuracies) for member in result.members for epoch in member.epochs}
    assert batches == {2}  # 64 images held out, in mini-batches of 32
    assert [unit.steps for unit in units(HELD_OUT, tmp_path)] == [3 * 6] * 2  # type: ignore[arg-type]
