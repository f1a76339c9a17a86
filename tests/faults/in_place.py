"""In-place activations: healthy, with the input overwritten as announced; and one whose saved value is overwritten."""

import torch

relu_inplace = torch.nn.ReLU(inplace=True)
hardtanh_inplace = torch.nn.Hardtanh(inplace=True)
silu_inplace = torch.nn.SiLU(inplace=True)


def cube_inplace(x):
    """Cannot be differentiated: mul_ spoils what it needs itself."""
    return x.mul_(x * x)
