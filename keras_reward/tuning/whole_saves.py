"""Saving without losing what was saved before."""

import functools
import inspect
import os
import pathlib
import re

import keras

from keras_reward.backend.keras_private import may_overwrite
from keras_reward.whole_files import whole_file, whole_files

# What Keras writes elsewhere than into a local file.
REMOTE = re.compile(r"/cns|/cfs|/gcs|/hdfs|/readahead|/placer|/tfhub|.*://")


class WholeSaves:
    """Mixin for `keras.Model`: `save` and `save_weights` write whole files.

    Keras writes in place, so an interrupted or failing save would destroy the file that
    was there. Callbacks such as `ModelCheckpoint` call these methods.
    """

    @functools.wraps(keras.Model.save)
    def save(self, filepath, *args, **kwargs):
        given = inspect.signature(keras.Model.save)
        bound = given.bind(self, filepath, *args, **kwargs)
        bound.apply_defaults()
        is_folder = bound.arguments.get("zipped") is False
        endings = () if is_folder else (".keras", ".h5", ".hdf5")
        write_whole(super().save, bound, is_folder, endings)

    @functools.wraps(keras.Model.save_weights)
    def save_weights(self, filepath, *args, **kwargs):
        given = inspect.signature(keras.Model.save_weights)
        bound = given.bind(self, filepath, *args, **kwargs)
        bound.apply_defaults()
        is_sharded = bound.arguments.get("max_shard_size") is not None
        endings = (".weights.h5", ".weights.json") if is_sharded else (".weights.h5",)
        write_whole(super().save_weights, bound, False, endings, is_sharded)


def write_whole(method, bound, is_folder, endings, is_sharded=False):
    """Calls a method of Keras that writes files, with a new path to write to.

    Args:
        method: the method.
        bound: its arguments, a bound signature with `self` and `filepath`.
        is_folder: whether it makes a folder.
        endings: those of the paths that it takes; Keras refuses others itself.
        is_sharded: whether it writes further files beside the one it is given.
    """
    path, arguments = bound.arguments["filepath"], bound.arguments
    is_path = isinstance(path, (str, os.PathLike)) and not REMOTE.match(str(path))
    is_taken = is_path and str(path).endswith(endings or ("",))
    if not is_taken or (is_folder and str(path).endswith(".keras")):
        method(*bound.args[1:], **bound.kwargs)
        return
    exists = not arguments["overwrite"] and os.path.exists(path)
    if exists and not may_overwrite(path):
        return
    arguments["overwrite"] = True  # the new file
    if is_folder or is_sharded:
        path = pathlib.Path(path)
        with whole_files(path if is_folder else path.parent) as new:
            arguments["filepath"] = new if is_folder else new / path.name
            method(*bound.args[1:], **bound.kwargs)
        return
    with whole_file(path) as new:
        arguments["filepath"] = new
        method(*bound.args[1:], **bound.kwargs)
