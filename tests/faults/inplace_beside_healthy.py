"""An activation that overwrites its input, before two healthy ones that only share their values for positive inputs."""

import torch


def a_abs_inplace(x):
    return x.abs_()


def leaky(x):
    return torch.nn.functional.leaky_relu(x, 0.01)


def leaky_steep(x):
    return torch.nn.functional.leaky_relu(x, 0.2)
