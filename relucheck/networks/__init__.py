"""Networks to compare: one description of all of them, their kinds, and generated examples."""

from relucheck.networks import convnets, lenet, mlp  # each registers its kinds
from relucheck.networks.network import ACTIVATIONS, KINDS, ActivationName, Kind, Network

__all__ = ["ACTIVATIONS", "KINDS", "ActivationName", "Kind", "Network", "convnets", "lenet", "mlp"]
