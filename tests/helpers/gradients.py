"""Gradients to compare those of training steps with."""

import numpy as np


def differentiate(function, weights, step=1e-5):
    """Central differences of a function of a list of arrays, as one vector.

    Args:
        function: what is called with `weights`.
        weights: list of float64 arrays. Moved in place, and moved back.
        step: how far.
    """
    gradient = []
    for weight in weights:
        for index in np.ndindex(weight.shape):
            at = weight[index]
            ends = []
            for moved in (at + step, at - step):
                weight[index] = moved
                ends.append(function(weights))
            weight[index] = at
            gradient.append((ends[0] - ends[1]) / (2 * step))
    return np.array(gradient)
