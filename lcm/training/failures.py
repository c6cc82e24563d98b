"""Why training ended early."""


class Stopped(Exception):
    """A signal asked the run to stop; everything up to the last step is saved."""


class NotFinite(Exception):
    """The training loss is not a finite number; the weights are those before the step that gave it."""
