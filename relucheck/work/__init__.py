"""Long work, divided into independent units, and a backend that runs them in processes of this machine."""

from relucheck.work.local import Local, cores, torch_threads
from relucheck.work.unit import Backend, Event, Listener, Report, Unit, WorkError

__all__ = ["Backend", "Event", "Listener", "Local", "Report", "Unit", "WorkError", "cores", "torch_threads"]
