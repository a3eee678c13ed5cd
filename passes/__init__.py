"""Relax passes, one a file, in the order of tvm_qplugin/pipeline.py."""

import tvm

from tvm_qplugin.core import errors

# An exception that crosses TVM's FFI keeps its class only if the class is registered.
for _name in dir(errors):
    _class = getattr(errors, _name)
    if isinstance(_class, type) and issubclass(_class, errors.QPluginError):
        tvm.error.register_error(_class)
