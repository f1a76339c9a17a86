"""The scenarios at full scale, on a CUDA device (``pytest -m gpu_training``).

Results go to ``relucheck-results/``, where a second run finds them; ``relucheck reproduce`` writes the same.
"""

from __future__ import annotations

import pytest
import torch

from relucheck.reproduction.experiments import convolutional, mlp
from relucheck.reproduction.run import reproduce
from tests.helpers import invariants

pytestmark = [
    pytest.mark.gpu_training,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="full-scale training needs a CUDA device, and torch finds none; rehearse on a CPU: "
        "relucheck reproduce E1 --scale cpu (half an hour) or --scale smoke (seconds)",
    ),
]


@pytest.mark.parametrize("name", [*mlp.SCENARIOS, *convolutional.SCENARIOS])
def test_full_scale(name: str) -> None:
    invariants.everything(reproduce(name, "full", device="cuda").made)
