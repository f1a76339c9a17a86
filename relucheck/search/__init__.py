"""Random searches over learning rates, batch sizes and subgradients, with ASHA on Ray Tune."""

from relucheck.search.records import read
from relucheck.search.result import SearchResult, TrialEpoch, TrialResult
from relucheck.search.search import Search
from relucheck.search.space import Draw, Space
from relucheck.search.units import run, unit

__all__ = ["Draw", "Search", "SearchResult", "Space", "TrialEpoch", "TrialResult", "read", "run", "unit"]
