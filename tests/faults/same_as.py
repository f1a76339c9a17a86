"""Two pairs, each declared to be one function: (mine_a, a_relu) and (mine_z, zz_relu). Both disagree at 0: 1 against 0."""

import torch

from relucheck import Activation


def a_relu(x):
    return torch.relu(x)


def zz_relu(x):
    return torch.relu(x)


def _mine(x):
    return torch.where(x < 0, 0 * x, x)


mine_a = Activation("mine_a", lambda: _mine, same_as="a_relu")
mine_z = Activation("mine_z", lambda: _mine, same_as="zz_relu")
