"""Malformed inputs of every reward, and what may become of them.

Each input is a good one that was changed once or twice, at random. It gives a reward
for each row, or an error of ours: a `ValueError` that says what it received.
"""

import functools
import traceback

import every_part
import keras
import numpy as np

import keras_reward as kr

LARGE = 1e12  # a larger reward does not count


def of_rows(y_true, y_pred):
    """A reward on the host that takes any outputs."""
    return [float(np.size(row)) for row in leaves_of(y_pred)[0]]


def smooth(y_true, y_pred):
    levels = keras.ops.cast(leaves_of(y_pred)[0], "float32")
    return -keras.ops.abs(levels - keras.ops.roll(levels, 1, axis=1))


MORE = {
    "iou of binary masks": (
        lambda: kr.MeanIoUReward(1),
        every_part.labels(2, 5, 7, classes=2),
        every_part.labels(2, 5, 7, classes=2, seed=1),
    ),
    "f_beta": (
        lambda: kr.FBetaReward(4, beta=2.0, ignore_absent=True),
        every_part.labels(2, 5, 7)[..., None],
        every_part.labels(2, 5, 7, seed=1)[..., None],
    ),
    "published average precision": (
        lambda: kr.MeanAveragePrecisionReward(as_published=True, image_size=8),
        every_part.BOXES,
        every_part.MORE_BOXES,
    ),
    "false positives": (
        lambda: kr.RecallReward(false_positive_penalty=0.1, duplicate_penalty=1.0),
        every_part.BOXES,
        every_part.MORE_BOXES,
    ),
    "host": (lambda: kr.HostReward(of_rows), None, every_part.photos(2, 5, 7, 3)),
    "map": (lambda: kr.MapReward(smooth), None, every_part.labels(2, 5, 7)),
    "product": (
        lambda: kr.VividnessReward() * kr.HueEntropyReward(),
        None,
        every_part.photos(3, 5, 7, 3),
    ),
    "captions by several": (
        lambda: every_part.cider() + 0.1 * kr.LengthReward(end_id=1),
        every_part.captions(3, 5, references=2),
        every_part.captions(3, 6, seed=1),
    ),
}
REWARDS = {**every_part.REWARDS, **MORE, "matched_iou": (None, *([None] * 2))}
REWARDS["matched_iou"] = (
    lambda: kr.matched_iou,
    every_part.BOXES,
    every_part.MORE_BOXES,
)
# Those that document a NaN, for a row with values that are NaN or far outside.
MAY_BE_NAN = {
    *("vividness", "hue_entropy", "colorfulness", "product", "psnr", "sum", "model"),
    *("mean_iou", "dice of one-hot", "iou of binary masks", "f_beta", "boundary"),
    *("boundary of masks", "map"),
}


@functools.cache
def reward_of(name):
    return REWARDS[name][0]()


# Changes of one leaf.


RESIZES = (
    *(lambda a: a[:1], lambda a: a[:0], lambda a: np.concatenate([a, a])),
    *(lambda a: a[0], lambda a: a[None], lambda a: a[..., None], lambda a: a[..., :0]),
    *(lambda a: a[..., :1], lambda a: a.reshape(-1), lambda a: a.reshape(len(a), -1)),
    *(lambda a: a[:, :0], lambda a: a[:, :1], lambda a: a[:, None], lambda a: a.T),
    *(lambda a: np.swapaxes(a, 0, -1), lambda a: np.zeros((0,) * a.ndim, a.dtype)),
    *(lambda a: np.zeros((), a.dtype), lambda a: np.concatenate([a[:1]] * len(a))),
)


def resized(leaf, random):
    """Other rows, or another rank."""
    try:
        return RESIZES[random.integers(len(RESIZES))](leaf)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return leaf  # no array, or one without such an axis


DTYPES = (
    *("int8", "uint8", "int16", "int32", "int64", "uint32", "uint64", "bool"),
    *("float16", "float32", "float64", "complex64", "str", "bytes", "object"),
    *("datetime64[s]", "V4"),
)


def retyped(leaf, random):
    if not isinstance(leaf, np.ndarray):
        return leaf
    with np.errstate(all="ignore"):
        try:
            return leaf.astype(DTYPES[random.integers(len(DTYPES))])
        except (OverflowError, TypeError, ValueError):
            return leaf


VALUES = (
    *(np.nan, np.inf, -np.inf, 3e38, -3e38, 1e300, 1e18, 1e-45, -1.0, 0.5, 255.0),
    *(-1, -(2**31), 2**31 - 1, 2**31, 2**40, -(2**40), 2**63 - 1, 10**6, 99),
)


def revalued(leaf, random):
    """A value that is odd, at one place or everywhere."""
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "iuf":
        return leaf
    value = VALUES[random.integers(len(VALUES))]
    dtype = leaf.dtype
    if isinstance(value, int) and dtype.kind != "f":
        dtype = "int64"
    elif isinstance(value, float) and abs(value) > 3e38 and np.isfinite(value):
        dtype = "float64"
    elif isinstance(value, float) and dtype.kind != "f":
        dtype = "float32"
    leaf = leaf.astype(dtype)
    if not leaf.size or random.random() < 0.3:
        return np.full_like(leaf, value)
    leaf.flat[random.integers(leaf.size)] = value
    return leaf


OTHERS = (
    *(None, "text", b"bytes", 3, 2.5, True, [], {}, (), [None], [[1, 2], [3]]),
    *([[1.5], []], ["a", "b"], [[["a"]]], [1, "a"], {1, 2}, object(), int, len),
    *({"boxes": None, "labels": None}, {"boxes": [], "labels": []}, {"a": 1}),
    *(np.array([None, 1]), np.array(["a", "b"]), np.array({}), 10**30, [10**30]),
    *([float("nan")], np.float32(1.0), np.datetime64("2020"), 1j, range(3)),
)


def replaced(leaf, random):
    return OTHERS[random.integers(len(OTHERS))]


def wrapped(leaf, random):
    """The leaf within a nest, or as lists."""
    changes = [
        *({"a": leaf}, [leaf], (leaf, None), [leaf, "text"], {"boxes": leaf}),
        *({"labels": leaf}, [[leaf]], {"a": {"b": (leaf,)}}, {1: leaf, "a": leaf}),
    ]
    if isinstance(leaf, np.ndarray):
        lists = leaf.tolist()
        holes = [None, *lists] if isinstance(lists, list) else None
        changes += [lists, holes, np.array([leaf, None], dtype=object)]
        changes += [[*lists, []] if isinstance(lists, list) else lists]
    return changes[random.integers(len(changes))]


CHANGES = (resized, resized, retyped, revalued, revalued, replaced, wrapped)


def changed(nest, random):
    """A nest of which one leaf, or the keys, are changed."""
    if isinstance(nest, dict) and random.random() < 0.8 and nest:
        key = list(nest)[random.integers(len(nest))]
        if random.random() < 0.15:
            return {k: v for k, v in nest.items() if k != key}
        if random.random() < 0.1:
            return {(k if k != key else "other"): v for k, v in nest.items()}
        return {**nest, key: changed(nest[key], random)}
    return CHANGES[random.integers(len(CHANGES))](nest, random)


def malformed(random):
    """The name of a reward, and targets and outputs that are malformed."""
    name = list(REWARDS)[random.integers(len(REWARDS))]
    _, y_true, y_pred = REWARDS[name]
    kind = random.random()
    if kind < 0.05:
        y_true, y_pred = y_pred, y_true
    elif kind < 0.1:  # the outputs of another task
        y_pred = REWARDS[list(REWARDS)[random.integers(len(REWARDS))]][2]
    else:
        for _ in range(random.integers(1, 3)):
            if random.random() < 0.5:
                y_true = changed(y_true, random)
            else:
                y_pred = changed(y_pred, random)
    return name, y_true, y_pred


# What may come of it.


def outcome(name, y_true, y_pred):
    """What became of an input: a word, and what is wrong with that, or None."""
    try:
        result = reward_of(name)(y_true, y_pred)
    except Exception as error:
        return type(error).__name__, fault_of_error(error)
    return fault_of_result(name, y_true, y_pred, result)


def fault_of_error(error):
    """What is wrong with an error, or None."""
    places = traceback.extract_tb(error.__traceback__)
    ours = "keras_reward" in places[-1].filename
    if not isinstance(error, TypeError | ValueError | OSError):
        return f"another kind of error: {type(error).__name__}: {str(error)[:300]}"
    if not ours or "Received" not in str(error):
        return f"not a message of ours: {type(error).__name__}: {str(error)[:300]}"
    return None


def fault_of_result(name, y_true, y_pred, result):
    """What became of a reward that was computed, and what is wrong with it."""
    result = keras.ops.convert_to_numpy(result)
    both = leaves_of(y_true) + leaves_of(y_pred)
    leaves = [np.asarray(leaf) for leaf in both]
    try:
        outputs = [np.asarray(leaf) for leaf in leaves_of(y_pred)]
        rows = len(outputs[0])
    except (IndexError, TypeError):
        return "result", f"a result without rows, of shape {result.shape}"
    expected = (rows,) if name != "matched_iou" else outputs[0].shape[:2]
    if result.shape != expected or result.dtype != np.float32:
        return "result", f"a result {result.shape} {result.dtype}, not {expected}"
    if any(leaf.ndim == 0 or len(leaf) != rows for leaf in leaves if leaf.size):
        return "result", f"broadcast: {[leaf.shape for leaf in leaves]}"
    lost = ~np.isfinite(result)
    odd = np.zeros(rows, bool)
    for leaf in leaves:
        if leaf.dtype.kind in "iuf" and leaf.size:
            values = np.abs(leaf.reshape(rows, -1).astype("float64"))
            odd |= ~(values <= LARGE).all(axis=1)
    if lost.any() and (name not in MAY_BE_NAN or (lost & ~odd).any()):
        return "NaN", "a NaN that is not documented"
    return ("NaN" if lost.any() else "reward"), None


def leaves_of(nest):
    """Leaves of a nest, in which lists of numbers are leaves too."""
    if isinstance(nest, dict):
        nest = list(nest.values())
    elif not isinstance(nest, list | tuple):
        return [] if nest is None else [nest]
    elif holds_numbers(nest):
        width = max((len(each) for each in nest if hasattr(each, "__len__")), default=0)
        return [np.zeros((len(nest), width))]  # perhaps ragged
    return [leaf for each in nest for leaf in leaves_of(each)]


def holds_numbers(nest):
    while isinstance(nest, list | tuple):
        nest = next((n for n in nest if not isinstance(n, list | tuple) or n), None)
    return isinstance(nest, int | float)


def run(count, seed, report):
    """Tries inputs; calls `report(kind, fault, description)` for each."""
    for number in range(count):
        random = np.random.default_rng((seed, number))
        name, y_true, y_pred = malformed(random)
        with np.errstate(all="ignore"):
            kind, fault = outcome(name, y_true, y_pred)
        report(kind, fault, f"{seed}/{number} {name}", (y_true, y_pred))
