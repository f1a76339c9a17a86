"""Targets that misbehave, one way each."""

from __future__ import annotations

import abc
import contextlib
import csv
import decimal
import fractions
import importlib
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def raises(x: Tensor) -> Tensor:
    raise OSError("the weights are gone")


def raises_in_backward(x: Tensor) -> Tensor:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, slope: float, more: float) -> Tensor:
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, v: Tensor) -> Any:
            # the published LeakyReLU of the 2022 report returns fewer gradients than it has inputs
            return v, None

    return Broken.apply(x, 0.1, 0.2)


def prints(x: Tensor) -> Tensor:
    print("NOISE" * 100)
    return torch.relu(x)


def loops_for_ever(x: Tensor) -> Tensor:
    while True:
        pass


def swallows_everything(x: Tensor) -> Tensor:
    while True:
        try:
            while True:
                pass
        except Exception:
            continue


def returns_a_number(x: Tensor) -> float:
    return 1.0


def returns_a_tuple(x: Tensor) -> tuple[Tensor, float]:
    return x > 0, 1.0


def returns_integers(x: Tensor) -> Tensor:
    return (x > 0).to(torch.int64)


def exits(x: Tensor) -> Tensor:
    raise SystemExit(3)


def exits_late(x: Tensor) -> Tensor:
    """Leaves in a call that only the search for equal spellings makes."""
    if x.dtype == torch.float64 and x.numel() > 300:
        raise SystemExit(0)
    return torch.relu(x)


class Stop(BaseException):
    """An exception that ``except Exception`` does not see, as pytest's own outcomes are."""


def stops(x: Tensor) -> Tensor:
    raise Stop("no more")


def stops_late(x: Tensor) -> Tensor:
    if x.dtype == torch.float64 and x.numel() > 300:
        raise Stop("no more")
    return torch.relu(x)


def stops_in_backward(x: Tensor) -> Tensor:
    class Stopping(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, v: Tensor) -> Tensor:
            raise Stop("no more")

    return Stopping.apply(x)


def closes(x: Tensor) -> Tensor:
    raise GeneratorExit


def interrupts(x: Tensor) -> Tensor:
    raise KeyboardInterrupt


def loses_the_folder(x: Tensor) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
    return torch.relu(x)


def removes_modules(x: Tensor) -> Tensor:
    # with all modules gone, Python may initialise its own anew, and the process is beyond repair
    for module in (csv, decimal, fractions, json, statistics):
        sys.modules.pop(module.__name__, None)
    return x.clamp(min=0)


def replaces_modules(x: Tensor) -> Tensor:
    sys.modules = {**sys.modules, "torch": types.ModuleType("torch")}
    return x.clamp(min=0)


def sets_threads(x: Tensor) -> Tensor:
    torch.set_num_threads(torch.get_num_threads() + 1)
    return torch.relu(x)


def patches_autograd(x: Tensor) -> Tensor:
    torch.autograd.grad = torch.Tensor.backward = lambda *arguments, **options: None
    return torch.relu(x)


#: Ends the threads of leaves_a_thread.
END = threading.Event()


def leaves_a_thread(x: Tensor) -> Tensor:
    threading.Thread(target=END.wait, name="left behind").start()
    return torch.relu(x)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise Stop("nor is this")


def raises_unprintable(x: Tensor) -> Tensor:
    raise Unprintable


class InplaceRaises(nn.Module):
    @property
    def inplace(self) -> bool:
        raise RuntimeError("ask somebody else")

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def allocates(x: Tensor) -> Tensor:
    hoard = []
    while True:
        hoard.append(torch.ones(2**24))


def random_everywhere(x: Tensor) -> Tensor:
    return x * torch.rand_like(x)


def mixes(x: Tensor) -> Tensor:
    return torch.cumsum(x, -1)


def halves(x: Tensor) -> Tensor:
    return x[..., ::2]


def needs_more(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


class NeedsArguments(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, gate: float) -> Tensor:
        return x * gate


class AbstractByConvention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class AbstractByTemplate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) + 1

    def act(self, x: Tensor) -> Tensor:
        raise NotImplementedError("write act")


class AbstractByDeclaration(nn.Module, abc.ABC):
    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


class WithoutForward(nn.Module):
    pass


def lacks_an_operation(x: Tensor) -> Tensor:
    return x & 1


class FailsToConstruct(nn.Module):
    def __init__(self) -> None:
        raise KeyError("no configuration")


def good(x: Tensor) -> Tensor:
    return torch.relu(x)


def imports_slowly(x: Tensor) -> Tensor:
    importlib.import_module("slow_to_import")
    return torch.relu(x)


def imports_slowly_and_loops(x: Tensor) -> Tensor:
    imports_slowly(x)
    while True:
        pass


def imports_too(x: Tensor) -> Tensor:
    assert importlib.import_module("slow_to_import").registry.OPERATORS == [1]
    return torch.relu(x)


def is_interrupted(x: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGINT)
    return torch.relu(x)


def loses_an_interrupt(x: Tensor) -> Tensor:
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGINT)
    return torch.relu(x)


def turns_an_interrupt(x: Tensor) -> Tensor:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    except BaseException:
        raise RuntimeError("Error calling __set_name__ on 'property' instance") from None
    return torch.relu(x)


def forks(x: Tensor) -> Tensor:
    os.fork()
    return torch.relu(x)


def forks_and_waits(x: Tensor) -> Tensor:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return torch.relu(x)


def forks_in_backward(x: Tensor) -> Tensor:
    class Forking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, v: Tensor) -> Tensor:
            os.fork()
            (x,) = ctx.saved_tensors
            return v * (x > 0)

    return Forking.apply(x)


def forks_and_raises(x: Tensor) -> Tensor:
    if os.fork() == 0:
        raise OSError("in the child")
    return torch.relu(x)


def forks_and_exits(x: Tensor) -> Tensor:
    if os.fork() == 0:
        raise SystemExit(0)
    return torch.relu(x)


#: Where forks_and_counts writes who called it.
CALLS = Path(os.devnull)


def forks_and_counts(x: Tensor) -> Tensor:
    with open(CALLS, "a") as file:
        file.write(f"{os.getpid()}\n")
    os.fork()
    return torch.relu(x)


def forks_a_worker(x: Tensor) -> Tensor:
    """As multiprocessing does on Linux: the child does its work and ends where it was forked."""
    worker = multiprocessing.get_context("fork").Process(target=math.sqrt, args=(2.0,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    return torch.relu(x)


def forks_an_endless_child() -> None:
    if os.fork() == 0:
        while True:
            pass


class _Endless(torch.autograd.Function):
    """ReLU, with modes that never return."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return torch.where(ctx.saved_tensors[0] > 0, v, 0 * v)

    @staticmethod
    def jvp(ctx: Any, u: Tensor) -> Tensor:
        while True:
            pass


class _EndlessTwice(_Endless):
    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor) -> Any:
        while True:
            pass


def endless_in_forward_mode(x: Tensor) -> Tensor:
    return _Endless.apply(x)


def endless_in_two_modes(x: Tensor) -> Tensor:
    return _EndlessTwice.apply(x)
