"""``python -m tvm_qplugin`` is the command ``tvm-qplugin``."""

from tvm_qplugin.cli import main

if __name__ == "__main__":
    main()
