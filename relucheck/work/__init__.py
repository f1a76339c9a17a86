"""Long work in independent units, and a backend that runs them in local processes."""

from relucheck.work.here import cores, torch_threads
from relucheck.work.local import Local
from relucheck.work.unit import Backend, Event, Listener, Report, Unit, WorkError

__all__ = ["Backend", "Event", "Listener", "Local", "Report", "Unit", "WorkError", "cores", "torch_threads"]
