"""Mini-batches: each epoch has every sample once, and the one that follows is the one that comes."""

from __future__ import annotations

import pytest
import torch

from relucheck.training.batches import Batches, DataSplit
from tests.helpers.training_case import SETTINGS, changed

SPLIT = DataSplit(torch.arange(20.0)[:, None], torch.arange(20))


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_batch_after_a_batch_is_the_next_one(shuffle: bool) -> None:
    settings = changed(SETTINGS, shuffle=shuffle, batch_size=8, epochs=2)
    batches = Batches(settings, (3, 4), SPLIT)
    expected = None
    for epoch in range(2):
        batches.begin(epoch)
        labels = []
        for start, stop in ((0, 8), (8, 16), (16, 20)):
            x, y = batches.of(start, stop)
            assert y.shape == ((2, stop - start) if shuffle else (stop - start,))
            assert x[..., 0].equal(y.float())
            assert expected is None or all(one.equal(other) for one, other in zip(expected, (x, y), strict=True))
            labels.append(y)
            expected = batches.after(stop)
        drawn = torch.cat(labels, -1)
        assert drawn.sort(-1).values.equal(torch.arange(20).expand_as(drawn))
    assert expected is None, "nothing follows the last step of the run"


def test_every_seed_and_epoch_has_an_order_that_does_not_depend_on_other_seeds() -> None:
    settings = changed(SETTINGS, shuffle=True, epochs=2)
    both, alone = Batches(settings, (3, 4), SPLIT), Batches(settings, (4,), SPLIT)
    orders = []
    for epoch in range(2):
        both.begin(epoch)
        alone.begin(epoch)
        assert both.order is not None
        assert alone.order is not None
        assert both.order[1].equal(alone.order[0])
        orders += [tuple(order.tolist()) for order in both.order]
    assert len(set(orders)) == 4
    assert Batches(changed(settings, shuffle=False), (3, 4), SPLIT).order is None
