"""Long work in units that stand for themselves, on a backend: processes of this machine, later machines of a cluster."""

from relucheck.work.local import Local, cores, torch_threads
from relucheck.work.unit import Backend, Event, Listener, Report, Unit, WorkError

__all__ = ["Backend", "Event", "Listener", "Local", "Report", "Unit", "WorkError", "cores", "torch_threads"]
