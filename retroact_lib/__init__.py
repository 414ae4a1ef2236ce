"""RetroAct: retrospective language agents trained by joint policy gradient, as a notebook-first study."""

import logging
import warnings

__version__ = "0.1.0"

# Two messages at import that say nothing to a user: a kernel that is not needed, a widget that is not used.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="IProgress not found")
