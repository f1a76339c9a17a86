"""Activations whose native code ends or blocks the process that calls them, one way each."""

from __future__ import annotations

import collections
import itertools
import os
import signal
from typing import Any

import torch
from torch import Tensor


def first_good(x: Tensor) -> Tensor:
    return torch.relu(x)


def aborts_in_backward(x: Tensor) -> Tensor:
    class Aborting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, v: Tensor) -> Tensor:
            os.abort()

    return Aborting.apply(x)


def crashes(x: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGSEGV)
    return x


def exits(x: Tensor) -> Tensor:
    os._exit(0)


def is_killed_in_a_gradient(x: Tensor) -> Tensor:
    """As the system does where memory runs out."""
    if x.requires_grad:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.relu(x)


def hangs(x: Tensor) -> Tensor:
    collections.deque(itertools.repeat(None), maxlen=0)  # a loop in C, which no signal handler interrupts
    return x


def other_good(x: Tensor) -> Tensor:
    print("\x1b[2J")
    os.write(1, b"to the terminal")
    return torch.relu(x)
