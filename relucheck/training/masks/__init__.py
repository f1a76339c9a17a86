"""Hits as masks on the device: in plain torch, and as Triton kernels."""
