"""RetroAct: retrospective language agents trained by joint policy gradient, as a notebook-first study."""

import logging

__version__ = "0.1.0"

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it announces a kernel that is not needed
