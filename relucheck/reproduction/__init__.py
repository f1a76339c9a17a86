"""The published experiments: their definitions, how they run, and their reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: The scenarios that ``relucheck reproduce`` knows, with their titles.
TITLES: Final[Mapping[str, str]] = {
    "E1": "Initial experiment: two runs of s = 0 and one of s = 1 from one initialisation",
    "E2": "Training an MLP with several subgradients at 0",
    "E3": "Spread of the test accuracy by subgradient: over seeds, and pooled as published",
    "E4": "Volume of the bifurcation zone",
    "E5": "Training a residual network with several subgradients at 0",
    "E6": "Training MobileNetV3-small with several subgradients at its kinks",
    "E7": "Draws of the published search space with tuned and default subgradients, in pairs",
    "E8": "The best configurations of the published searches, trained again with default and tuned subgradients",
    "E9": "Hits: how often pre-activations equal a kink, and which arithmetics give the published counts",
    "E10": "E2 with one thing changed at a time: data, optimiser, network, batch size",
    "E11": "Dose-response: eleven subgradients from 0 to 1",
}
