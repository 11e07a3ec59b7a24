"""What is shown of a run and of a sweep, as matplotlib figures. It may not import commands, and MLflow only through `record`."""

import logging

# On a fresh machine it says that it has made a list of fonts, between the lines of a sweep.
logging.getLogger("matplotlib").setLevel(logging.WARNING)
