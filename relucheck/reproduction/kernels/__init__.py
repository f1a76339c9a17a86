"""``relucheck kernels``: how a device rounds the products of the published experiments."""
