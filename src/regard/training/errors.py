"""The error of everything that may be wrong with data, settings or files of a training run."""


class TrainingError(ValueError):
    """Data, a setting or a file of a run that cannot be used: one line that says what it was and what it may be."""


class TakenError(TrainingError):
    """The directory of a run belongs to another one."""


class DivergedError(TrainingError):
    """Loss or gradient is no longer a finite number."""


class StorageError(TrainingError):
    """A file of the run could not be written, because the disk is full for example."""
