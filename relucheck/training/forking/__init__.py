"""The forking executor: the members of a seed as one run until their gradients first differ."""

from relucheck.training.forking.branch import Branch, DataSplit, finite_or_none, same_gradients
from relucheck.training.forking.executor import ForkingExecutor

__all__ = ["Branch", "DataSplit", "ForkingExecutor", "finite_or_none", "same_gradients"]
