"""Pictures and tables of runs, sweeps and maps, with matplotlib. It may use MLflow only through `record`.

It may import page (one HTML file of a sweep), record and run, and nothing of sweep or the commands.
"""

import logging

# On a fresh machine matplotlib logs that it has created a list of fonts. That line would come between the lines of a sweep.
logging.getLogger("matplotlib").setLevel(logging.WARNING)
