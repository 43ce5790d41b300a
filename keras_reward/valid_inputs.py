"""Inputs with NaN or infinite numbers, which must not reach the weights.

One such number makes all that a model computes of its row NaN, then the loss, the
gradients, and with them all weights.
"""

from keras import ops

from keras_reward.nests import is_float, leaves_of, map_leaves
from keras_reward.ragged import is_ragged


def split_valid(x):
    """Separates inputs whose numbers are finite from those with NaN or infinities.

    Args:
        x: nest of tensors `(batch, ...)`.

    Returns:
        `(x, valid)`: the inputs, with zeros in the rows that have a NaN or an infinity
        in one of their leaves, and a mask `(batch,)` of the other rows. None instead of
        a mask if there are no floats.
    """
    masks = [finite_rows(leaf) for leaf in leaves_of(x) if may_be_invalid(leaf)]
    if not masks:
        return x, None
    valid = masks[0]
    for mask in masks[1:]:
        valid = ops.logical_and(valid, mask)

    def cleaned(leaf):
        return where_valid(valid, leaf) if may_be_invalid(leaf) else leaf

    return map_leaves(cleaned, x), valid


def may_be_invalid(leaf):
    """Whether a leaf has rows of floats."""
    return not is_ragged(leaf) and len(leaf.shape) > 0 and is_float(leaf)


def finite_rows(leaf):
    """Which rows of a tensor are finite: `(batch,)` bool."""
    axes = tuple(range(1, len(leaf.shape)))
    return ops.all(ops.isfinite(leaf), axis=axes) if axes else ops.isfinite(leaf)


def where_valid(valid, tensor, otherwise=0.0, axis=0):
    """A tensor with another value in the rows that are not valid.

    Args:
        valid: `(batch,)` bool, or None: all rows are.
        tensor: has the batch in its axis `axis`.
        otherwise: number. Default 0.
        axis: int. Default 0.
    """
    if valid is None:
        return tensor
    tensor = ops.convert_to_tensor(tensor)
    shape = [1] * len(tensor.shape)
    shape[axis] = -1
    otherwise = ops.cast(otherwise, tensor.dtype)
    return ops.where(ops.reshape(valid, shape), tensor, otherwise)


def as_weights(valid, weights=None):
    """Weights of inputs `(batch,)` float32 that are 0 where they are not valid.

    Args:
        valid: `(batch,)` bool, or None: all are.
        weights: `(batch,)`, or None: 1 for all.
    """
    if valid is None:
        return weights
    own = ops.cast(valid, "float32")
    return own if weights is None else where_valid(valid, weights)
