"""Writing figures of matplotlib to files."""

import os
import pathlib

from keras_reward.whole_files import whole_file


def save_figure(figure, path):
    """Writes a figure, whole or not at all.

    Args:
        figure: a figure of matplotlib.
        path: as in its `savefig`, which adds an ending where there is none.
    """
    if isinstance(path, (str, os.PathLike)) and not pathlib.Path(path).suffix:
        path = f"{os.fspath(path)}.{figure.canvas.get_default_filetype()}"
    with whole_file(path) as new:
        figure.savefig(new, dpi=120)
