"""The forking executor: the members of a seed as one run until their gradients first differ."""

from relucheck.training.batches import DataSplit
from relucheck.training.forking.branch import Branch, choice, finite_or_none, same_gradients
from relucheck.training.forking.executor import Forking, ForkingExecutor

__all__ = ["Branch", "DataSplit", "Forking", "ForkingExecutor", "choice", "finite_or_none", "same_gradients"]
