"""The best of the predictions that are assigned to each ground-truth box.

Of all of them, of those before each, or of all but each: what a reward needs to know to
say what one box more or less would earn. All of it costs as much as comparing M
predictions with G ground-truth boxes once.
"""

from keras import ops


def assignments(chosen, truth):
    """Whether each prediction is assigned to each ground-truth box.

    Args:
        chosen: `(rows, M)` int32, the number of the box that each is assigned to.
        truth: ground truth as `read_boxes` returns it, `(rows, G)` each.

    Returns:
        `(rows, G, M)` bool.
    """
    number = ops.arange(ops.shape(truth["area"])[1], dtype="int32")
    return chosen[:, None, :] == number[None, :, None]


def best_of_all(hits, assigned):
    """The highest value of the predictions assigned to each ground-truth box.

    Args:
        hits: `(rows, M)`, at least 0.
        assigned: `(rows, G, M)`, what `assignments` returned.

    Returns:
        `(rows, G)`, 0 where there is none.
    """
    if 0 in assigned.shape[1:]:
        return ops.zeros(ops.shape(assigned)[:2], "float32")
    return ops.max(values_of(hits, assigned), axis=2)


def best_of_others(hits, assigned):
    """As `best_of_all`, without each of the predictions in turn: `(rows, G, M)`."""
    values = values_of(hits, assigned)
    if 0 in values.shape[1:]:
        return values
    best = ops.max(values, axis=2, keepdims=True)
    number = ops.arange(ops.shape(values)[2], dtype="int32")
    first = ops.min(ops.where(values >= best, number, 2**30), axis=2, keepdims=True)
    is_best = number == first  # one of them: on ties, the second best is as good
    second = ops.max(ops.where(is_best, 0.0, values), axis=2, keepdims=True)
    return ops.where(is_best, second, best)


def best_of_earlier(hits, assigned):
    """As `best_of_all`, of the predictions before each one: `(rows, G, M)`."""
    values = values_of(hits, assigned)
    if 0 in values.shape[1:]:
        return values
    before = ops.pad(values[..., :-1], ((0, 0), (0, 0), (1, 0)))
    best = ops.associative_scan(ops.maximum, before, axis=2)
    return ops.reshape(best, ops.shape(before))  # which TensorFlow forgets


def values_of(hits, assigned):
    """Values `(rows, G, M)` of the predictions, 0 where they are not assigned."""
    return ops.where(assigned, hits[:, None, :], 0.0)


def at_own_box(best, assigned):
    """Values `(rows, G, M)` at the box that each prediction is assigned to.

    Returns:
        `(rows, M)`, 0 without ground-truth boxes.
    """
    # A sum, which is defined without any box too. Each is assigned to one.
    return ops.sum(ops.where(assigned, best, 0.0), axis=1)
