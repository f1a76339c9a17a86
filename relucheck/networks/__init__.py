"""Networks to compare: one description for all kinds of networks, the kinds themselves, and generated examples."""

from relucheck.networks import convnets, lenet, mlp  # importing them registers their kinds
from relucheck.networks.network import ACTIVATIONS, KINDS, ActivationName, Kind, Network

__all__ = ["ACTIVATIONS", "KINDS", "ActivationName", "Kind", "Network", "convnets", "lenet", "mlp"]
