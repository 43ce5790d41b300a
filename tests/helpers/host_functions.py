"""Functions for processes, in a module that is loaded quickly."""

import os
import time

import numpy as np

time.sleep(1.5)  # as if it were loaded slowly: longer than the timeout of a call


def dies_or_hangs(y_true, y_pred):
    """The id of the process, which dies at 8 and hangs at 7."""
    if 8 in y_true:
        os._exit(1)
    if 7 in y_true:
        time.sleep(100)
    return np.full(len(y_pred), os.getpid(), "float32")
