"""Tests of one backend are collected on that backend alone."""

import keras

collect_ignore_glob = [] if keras.config.backend() == "jax" else ["*_jax.py"]
