"""Methods, networks, data and seeds against each other, from one file."""

from metamixer.studies.local_runner import Ended, Halted
from metamixer.studies.run_study import Engine, conduct, table_of
from metamixer.studies.run_worker import finished
from metamixer.studies.study_file import Study
from metamixer.studies.table import Table

__all__ = ["Study", "conduct", "table_of", "Table", "Ended", "Halted", "Engine", "finished"]
