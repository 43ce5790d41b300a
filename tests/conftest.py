"""Tests of one backend are collected on that backend alone, and on a backend on which
Keras does not train, the tests of what is left."""

import pathlib

import keras
from backends import CAN_TRAIN

BACKEND = keras.config.backend()
LEFT = ("backend", "codecs", "evaluation", "forms", "rewards", "test_advantages.py")

collect_ignore_glob = [
    f"*_{name}.py" for name in ("jax", "torch", "numpy") if name != BACKEND
]
if not CAN_TRAIN:
    here = pathlib.Path(__file__).parent
    collect_ignore_glob += [p.name for p in here.iterdir() if p.name not in LEFT]
