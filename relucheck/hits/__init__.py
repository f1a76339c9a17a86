"""Predict, plan and validate how often a pre-activation lands exactly on a kink."""
