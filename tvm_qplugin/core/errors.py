"""What goes wrong through no fault of ours: each message says what was given, expected, and to do."""


class QPluginError(ValueError):
    """Base of every error that a user can cause; the command line prints it without a traceback."""


class ModelError(QPluginError):
    """The model file is broken, or holds something that cannot be imported."""


class CalibrationError(QPluginError):
    """Calibration data or a calibration table does not fit the model."""


class RecipeError(QPluginError):
    """A recipe or an option of a pass is not understood."""


class TargetError(QPluginError):
    """The target is unknown, lacks a feature, or its toolchain is missing."""


class ArtifactError(QPluginError):
    """An artifact is incomplete, altered, or was made for something else."""


class InputError(QPluginError):
    """Arrays given to a compiled model have the wrong number, shape or dtype."""


class CacheError(QPluginError):
    """The settings of the cache of compiled kernels are not understood."""


class DatabaseError(QPluginError):
    """A tuning database cannot be read or written."""
