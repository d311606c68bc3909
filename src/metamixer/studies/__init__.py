"""Studies: compare methods, networks, data and seeds, defined in one file."""

from metamixer.studies.child_process import Halted
from metamixer.studies.estimate import Left
from metamixer.studies.local_runner import Ended
from metamixer.studies.plan import Jobs, Plan
from metamixer.studies.results import Line, read_lines
from metamixer.studies.run_folder import finished
from metamixer.studies.run_study import Engine, conduct, table_of
from metamixer.studies.study_file import Study
from metamixer.studies.table import Table

__all__ = ["Study", "conduct", "table_of", "Table", "Ended", "Halted", "Engine", "Jobs", "Plan", "Left"]
__all__ += ["Line", "read_lines", "finished"]
