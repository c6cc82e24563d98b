"""Why training ended early."""


class Stopped(BaseException):
    """A signal asked the run to stop; everything up to the last step is saved.

    Like KeyboardInterrupt no Exception: a sweep ends with it, and no `except Exception` on the way takes it for a fault.
    """


class NotFinite(Exception):
    """The training loss is not a finite number; the weights are those before the step that gave it."""
