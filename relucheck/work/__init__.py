"""Long work in independent units, and a backend that runs them in local processes."""

from relucheck.work.local import Local, cores, torch_threads
from relucheck.work.unit import Backend, Event, Listener, Report, Unit, WorkError

__all__ = ["Backend", "Event", "Listener", "Local", "Report", "Unit", "WorkError", "cores", "torch_threads"]
