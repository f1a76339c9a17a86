"""Networks as data: a description for all kinds, the kinds themselves, and examples."""

from relucheck.networks import convnets, lenet, mlp, mobilenet, resnets  # importing them registers their kinds
from relucheck.networks.network import ACTIVATIONS, KINDS, ActivationName, Kind, Network

__all__ = ["ACTIVATIONS", "KINDS", "ActivationName", "Kind", "Network", "convnets", "lenet", "mlp", "mobilenet", "resnets"]
