"""Methods, networks, data and seeds against each other, from one file."""

from metamixer.studies.cell import finished
from metamixer.studies.conduct import Engine, conduct, table_of
from metamixer.studies.running import Ended, Halted
from metamixer.studies.study import Study
from metamixer.studies.table import Table

__all__ = ["Study", "conduct", "table_of", "Table", "Ended", "Halted", "Engine", "finished"]
