"""RetroAct: retrospective language agents trained by joint policy gradient, as a notebook-first study."""

__version__ = "0.1.0"
