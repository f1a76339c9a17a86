"""Random searches over learning rates, batch sizes and subgradients, with ASHA on Ray Tune."""

from relucheck.search.search import Search
from relucheck.search.space import Draw, Space

__all__ = ["Draw", "Search", "Space"]
