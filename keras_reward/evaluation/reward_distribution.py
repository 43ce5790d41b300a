"""The distribution of the rewards of a model's samples, for each example."""

import json
import os
import pathlib
import zlib
from typing import NamedTuple

import keras
import numpy as np

from keras_reward.batches import batches_of
from keras_reward.compiled import kept
from keras_reward.evaluation.probes import Greedy, Sampler
from keras_reward.evaluation.sample_pools import (
    by_likelihood,
    by_reward,
    mean_of_chosen,
)
from keras_reward.nests import pad_rows, rows_of
from keras_reward.whole_files import whole_file


class RewardDistribution(NamedTuple):
    """Rewards and log-probabilities of many samples of each example.

    If a sample of an example has no reward (NaN), the example is left out of all
    curves.

    Attributes:
        rewards: `(examples, num_samples)` float32, NaN where there is no reward.
        log_probs: `(examples, num_samples)` float32, in nats.
        greedy: `(examples,)` float32, reward of the greedy output.
    """

    rewards: np.ndarray
    log_probs: np.ndarray
    greedy: np.ndarray

    @property
    def num_samples(self):
        """Number of samples of each example."""
        return self.rewards.shape[1]

    def with_rewards(self):
        """Which examples count: `(examples,)` bool."""
        finite = np.isfinite(self.rewards).all(axis=1) & np.isfinite(self.greedy)
        if not finite.any():
            raise ValueError(
                "Curves need at least one example in which all samples and the greedy "
                f"output have a reward. Received: none of {len(finite)}"
            )
        return finite

    def mean(self):
        """Mean reward of the samples of all examples: the expected reward."""
        return float(self.rewards[self.with_rewards()].mean(dtype="float64"))

    def greedy_mean(self):
        """Mean reward of the greedy outputs."""
        return float(self.greedy[self.with_rewards()].mean(dtype="float64"))

    def quantiles(self):
        """Mean over examples of the quantile function of the reward.

        Returns:
            `(num_samples,)`, rising; at index i the level (i + 0.5) / num_samples. Its
            mean, the area below the curve, is the mean reward.
        """
        return by_reward(self.rewards[self.with_rewards()]).mean(axis=0)

    def best_of(self):
        """Expected reward of the best of N samples: `(num_samples,)`, N from 1."""
        return mean_of_chosen(self.quantiles())

    def most_likely_of(self):
        """Expected reward of the likeliest of N samples: `(num_samples,)`, N from 1."""
        finite = self.with_rewards()
        ordered = by_likelihood(self.rewards[finite], self.log_probs[finite])
        return mean_of_chosen(ordered.mean(axis=0))

    def save(self, path):
        """Writes a NumPy file (.npz) that `load` reads."""
        save_arrays(path, self._asdict())

    @classmethod
    def load(cls, path):
        """Reads a file of `save`, or of `reward_distribution` with a `path`.

        Raises:
            ValueError: if it is not such a file.
        """
        with open(path, "rb") as file:
            try:
                with np.load(file, allow_pickle=False) as data:
                    found = cls(*(np.asarray(data[n], "float32") for n in cls._fields))
            except Exception as error:  # NumPy raises all kinds of errors
                raise unreadable(path, str(error)) from error
        shapes = [array.shape for array in found]
        if len(shapes[0]) != 2 or shapes != [shapes[0]] * 2 + [shapes[0][:1]]:
            raise unreadable(path, f"shapes {shapes}")
        return found


def unreadable(path, why):
    return ValueError(
        "A file of a RewardDistribution must have arrays `rewards` and `log_probs` "
        "(examples, samples) and `greedy` (examples,). "
        f"Received: {str(path)!r} ({why[:300]})"
    )


def reward_distribution(
    tuner,
    dataset,
    num_samples=256,
    chunk_size=64,
    batch_size=32,
    seed=0,
    path=None,
    verbose=1,
):
    """Draws many samples of each example, and computes their rewards.

    Figure 5 of the paper shows 10,000 samples of each of 1,024 images. Samples are
    drawn, rewarded and dropped `batch_size * chunk_size` at a time, by a function that
    is compiled once. So memory does not grow with `num_samples`, except for the two
    numbers stored for each sample. Samples and their likelihood use the tuner's
    temperature.

    The random numbers depend only on `seed` and the index of the chunk. So an
    interrupted run continues from its file, and a run with more samples begins with
    those of a run with fewer.

    Args:
        tuner: a `RewardTuning` around the model. It need not be compiled.
        dataset: `(x, y)` arrays or nests of them, or an iterable of batches in a fixed
            order.
        num_samples: number of samples of each example. Default 256.
        chunk_size: how many of them are drawn at a time. Default 64.
        batch_size: number of examples at a time if `dataset` is arrays. Default 32.
        seed: non-negative int. Default 0.
        path: a file (.npz) to which the samples are saved after each batch and when
            the run is interrupted. If it exists, the run continues from it. Default
            None: no file.
        verbose: 0 for no progress bar. Default 1.

    Returns:
        A `RewardDistribution`.

    Raises:
        ValueError: for numbers that are not positive, data without examples, or a file
            from another model or other settings.

    Example:

    ```python
    import keras
    import numpy as np
    from keras import ops
    from keras_reward import RewardTuning
    from keras_reward.evaluation import reward_distribution

    def value(y_true, y_pred):
        return ops.cast(y_pred, "float32")

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    tuned = RewardTuning(model, reward=value)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    result = reward_distribution(tuned, (x, None), num_samples=128, verbose=0)
    result.rewards            # (4, 128)
    result.quantiles()        # (128,), whose mean is result.mean()
    result.best_of()[9]       # expected reward of the best of 10
    ```

    Reference: Pinto et al. 2023, "Tuning computer vision models with task rewards",
    section 5 and figure 5.
    """
    sizes = {"num_samples": num_samples, "chunk_size": chunk_size}
    for name, value in {**sizes, "batch_size": batch_size}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive int. Received: {value!r}")
    chunk_size = min(chunk_size, num_samples)
    settings = {"seed": seed, "chunk_size": chunk_size}
    if path is not None:
        path = pathlib.Path(path).with_suffix(".npz")
        settings["weights"] = fingerprint(tuner)
    earlier = load_blocks(path, settings)
    functions = kept(tuner, Sampler, chunk_size), kept(tuner, Greedy)
    count, batches = batches_of(dataset, batch_size)
    chunks = -(-num_samples // chunk_size)
    bar = keras.utils.Progbar(
        count and count * chunks, verbose=verbose, unit_name="chunk"
    )
    blocks, rows = [], None
    try:
        for index, (x, y) in enumerate(batches):
            rows = rows or rows_of((x,))
            block = start_block(num_samples, rows_of((x,)), earlier)
            blocks.append(block)
            batch = pad_rows((x, y), max(rows, rows_of((x,))))
            fill_block(block, functions, batch, (seed, index), bar, index * chunks)
            save_blocks(path, blocks, earlier, settings)
    finally:
        save_blocks(path, blocks, earlier, settings)
    if not blocks:
        raise ValueError("`dataset` must have at least one batch. Received: none")
    if count is None:
        bar.update(len(blocks) * chunks, finalize=True)
    return RewardDistribution(
        *(np.concatenate([block[name] for block in blocks]) for name in FIELDS)
    )


FIELDS = RewardDistribution._fields


def fill_block(block, functions, batch, numbers, bar, done):
    """Draws the missing samples of one batch of examples.

    Args:
        block: dict of arrays, see `start_block`; changed in place.
        functions: a `Sampler` and a `Greedy`.
        batch: `(x, y)`, with at least as many rows as the block.
        numbers: tuple of ints that seed the random numbers.
        bar: `Progbar` to update.
        done: number of chunks before this batch.
    """
    sampler, greedy = functions
    size, (rows, total) = sampler.num_samples, block["rewards"].shape
    if np.isnan(block["greedy"]).all():
        block["greedy"][:] = greedy.run(*batch)["rewards"]["reward"][:rows]
    # A chunk that a smaller `num_samples` cut off is drawn again.
    for chunk in range(int(block["drawn"][0]) // size, -(-total // size)):
        drawn = sampler.draw(*batch, [*numbers, chunk])
        here = slice(chunk * size, min(total, (chunk + 1) * size))
        for name in ("rewards", "log_probs"):
            block[name][:, here] = drawn[name][:rows, : here.stop - here.start]
        block["drawn"][:] = here.stop
        bar.update(done + chunk + 1)


def start_block(num_samples, rows, earlier):
    """Arrays for one batch of examples, with the samples that a file already has.

    Args:
        num_samples: number of samples of each example.
        rows: number of examples.
        earlier: what `load_blocks` returned; rows taken from it are removed.
    """
    block = {
        "rewards": np.full((rows, num_samples), np.nan, "float32"),
        "log_probs": np.full((rows, num_samples), np.nan, "float32"),
        "greedy": np.full(rows, np.nan, "float32"),
        "drawn": np.zeros(rows, "int32"),
    }
    if len(earlier.get("drawn", ())) >= rows:
        known = min(num_samples, earlier["rewards"].shape[1])
        for name in FIELDS[:2]:
            block[name][:, :known] = earlier[name][:rows, :known]
        block["greedy"][:] = earlier["greedy"][:rows]
        block["drawn"][:] = np.minimum(earlier["drawn"][:rows], known)
        earlier.update({name: values[rows:] for name, values in earlier.items()})
    return block


def fingerprint(tuner):
    """A checksum of the weights, which differs between models."""
    checksum = 0
    for weight in tuner.weights:
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        checksum = zlib.crc32(array.tobytes(), checksum)
    return checksum


def load_blocks(path, settings):
    """Arrays of all examples in a file, an empty dict if there is no file."""
    if path is None or not path.exists():
        return {}
    with np.load(path) as data:
        found = json.loads(str(data["settings"]))
        if found != settings:
            raise ValueError(
                f"{path} holds samples of other weights or settings. Choose another "
                f"`path`, or delete it. Expected: {settings}. Received: {found}"
            )
        return {name: data[name] for name in (*FIELDS, "drawn")}


def save_blocks(path, blocks, earlier, settings):
    """Writes the samples so far, and further ones from an earlier run."""
    if path is None or not blocks:
        return
    arrays = {k: np.concatenate([block[k] for block in blocks]) for k in blocks[0]}
    rest = len(earlier.get("drawn", ()))
    if rest and earlier["rewards"].shape[1] == arrays["rewards"].shape[1]:
        arrays = {k: np.concatenate([v, earlier[k]]) for k, v in arrays.items()}
    save_arrays(path, {"settings": json.dumps(settings), **arrays})


def save_arrays(path, arrays):
    """Writes a whole NumPy file, to `path` with the ending .npz, as NumPy would."""
    if isinstance(path, (str, os.PathLike)) and not str(path).endswith(".npz"):
        path = f"{os.fspath(path)}.npz"
    with whole_file(path) as new:
        np.savez(new, **arrays)
