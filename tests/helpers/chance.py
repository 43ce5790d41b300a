"""Chance in tests: every seed can be shifted, and bounds count what they compare.

The environment variable TEST_SEED (0 by default) shifts every seed that is named, and
seeds what has none. `make flaky` runs the tests marked `chance` with other values.
"""

import functools
import os
import random

import keras
import numpy as np
import scipy.stats

TEST_SEED = int(os.environ.get("TEST_SEED", "0"))
FALSE_ALARM = 1e-6  # how often all comparisons of a test together may be wrong


def largest_deviation(comparisons, freedom=None):
    """What the largest of several deviations stays below, unless something is wrong.

    Args:
        comparisons: how many numbers are compared with their expectations.
        freedom: degrees of freedom of their standard errors, where those are
            estimated. By default they are known.

    Returns:
        The bound, in standard errors, above and below.
    """
    law = scipy.stats.norm if freedom is None else scipy.stats.t(freedom)
    return law.isf(FALSE_ALARM / 2 / comparisons)


def counts_within_chance(counts, draws, probabilities):
    """Whether each thing was drawn about as often as its probability says.

    Args:
        counts: how often each of several things was drawn.
        draws: of how many draws.
        probabilities: of each thing in one draw, of the shape of `counts`.
    """
    law = scipy.stats.binom(draws, probabilities)
    tail = FALSE_ALARM / 2 / np.size(counts)
    return np.all((law.ppf(tail) <= counts) & (counts <= law.isf(tail)))


def seed_everything():
    """Seeds what draws without a seed of its own, as the first weights of a layer do.

    Not by `keras.utils.set_random_seed`, which imports TensorFlow where it can.
    """
    random.seed(TEST_SEED)  # from which Keras takes seeds
    np.random.seed(TEST_SEED)
    if keras.config.backend() == "torch":
        import torch

        torch.manual_seed(TEST_SEED)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.random.set_seed(TEST_SEED)


def shift_seeds():
    """Adds to the seeds that tests and the package give to NumPy and to Keras."""
    if TEST_SEED == 0:
        return
    default_rng, generator = np.random.default_rng, keras.random.SeedGenerator
    start, shift = generator.__init__, 1000 * TEST_SEED

    def shifted_rng(seed=None):
        if isinstance(seed, (int, np.integer, list, tuple)):
            seed = [*np.ravel(seed), TEST_SEED]
        return default_rng(seed)

    def shifted_start(self, seed=None, *args, **kwargs):
        start(self, None if seed is None else seed + shift, *args, **kwargs)
        self._initial_seed = seed  # so that a copy is not shifted twice

    def shifted(draw):
        @functools.wraps(draw)
        def drawn(*args, seed=None, **kwargs):
            return draw(
                *args, seed=seed + shift if isinstance(seed, int) else seed, **kwargs
            )

        return drawn

    np.random.default_rng, generator.__init__ = shifted_rng, shifted_start
    for name in ("normal", "uniform"):
        setattr(keras.random, name, shifted(getattr(keras.random, name)))


def seeded_call(function, *args):
    """Calls a function as a test is called: in a process that tests have started."""
    seed_everything()
    return function(*args)
