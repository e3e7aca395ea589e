"""cli: wiring and printing, one file per verb.

Imports of other rooms stand inside the verbs, so that `--help` is quick.
"""

import os
import sys

# An empty entry of PYTHONPATH, as `PYTHONPATH=$PYTHONPATH:/more` leaves behind, means the working folder. Nothing there
# is imported, since it may be anybody's.
if (path := os.environ.get("PYTHONPATH")) and "" in path.split(os.pathsep) and os.getcwd() in sys.path:
    sys.path.remove(os.getcwd())
