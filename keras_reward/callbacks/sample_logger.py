"""Logs a model's samples of a few fixed inputs while it is tuned."""

import json
import pathlib

import numpy as np

from keras_reward.callbacks.sample_outlets import open_outlets
from keras_reward.callbacks.steps import StepCallback
from keras_reward.compiled import kept
from keras_reward.evaluation.probes import Greedy, Sampler
from keras_reward.forms.pictures import draw_sheet, input_images, output_images
from keras_reward.nests import rows_of, string_arrays, take_rows, to_numpy
from keras_reward.whole_files import append_lines, whole_file

MOST_NUMBERS = 4096  # maximum of an output in JSON; larger ones are only drawn


class SampleLogger(StepCallback):
    """Writes the samples of fixed inputs, their rewards, and the greedy output.

    Look at the samples: a rising reward does not show how the model earns it. Before
    the first step, and then every `every_epochs` epochs or `every_steps` steps, the
    callback writes to `folder`:

    - `samples.jsonl`, one line for each input: epoch, step, the greedy output with its
      reward and components, and output, reward and log-probability of each sample.
      Outputs of more than 4,096 numbers are only drawn.
    - `samples_000120.png` after step 120, if inputs or outputs are images, boxes
      over images, or maps of classes: the input, the greedy output and the samples,
      each with its reward. Drawn with `keras.visualization`, which needs OpenCV for
      boxes.

    The samples use the same random numbers each time, so that only the model changes.
    They have no influence on the training.

    Args:
        folder: where to write; created if it does not exist.
        x: a few inputs, an array or a nest of arrays.
        y: their targets, as the reward takes them. Default None.
        num_samples: number of samples of each input. Default 4.
        every_epochs: int. Default 1, unless `every_steps` is given.
        every_steps: int. Default None.
        describe: a function from outputs in rows to a list of strings, such as
            `vocabulary.decode`. They are written to the file and on the picture.
        bounding_box_format: Keras's name of the format of boxes. Default: that of the
            detector or the codec, or `"xyxy"` if they do not say it.
        tensorboard: a folder for TensorBoard's event files; needs the package
            `tensorboard`. Default None.
        wandb: if True, also logs to the run that `wandb.init` started. Default False.
        seed: int, seed of the samples' random numbers. Default 0.

    Raises:
        ValueError: for numbers that are not positive, for `every_epochs` and
            `every_steps` together, or for `wandb=True` without a run.

    Example:

    ```python
    import keras
    import numpy as np
    from keras import ops
    from keras_reward import RewardTuning
    from keras_reward.callbacks import SampleLogger

    def found(y_true, y_pred):
        return ops.mean(ops.cast(y_pred == y_true, "float32"), axis=(1, 2, 3))

    images = np.random.default_rng(0).random((8, 12, 12, 3)).astype("float32")
    masks = (images[..., :1] > 0.5).astype("int32")
    model = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(1, 1)])
    tuned = RewardTuning(model, reward=found, policy="bernoulli", seed=0)
    tuned.compile(keras.optimizers.Adam(0.01))
    logger = SampleLogger("samples", images[:2], masks[:2])
    tuned.fit(images, masks, epochs=2, callbacks=[logger], verbose=0)
    # samples/samples.jsonl, samples/samples_000000.png, ...
    ```
    """

    def __init__(
        self,
        folder,
        x,
        y=None,
        num_samples=4,
        every_epochs=None,
        every_steps=None,
        describe=None,
        bounding_box_format=None,
        tensorboard=None,
        wandb=False,
        seed=0,
    ):
        super().__init__(every_steps)
        if every_epochs is not None and every_steps is not None:
            raise ValueError(
                "Samples are written every so many epochs or steps, not both. "
                f"Received: every_epochs={every_epochs}, every_steps={every_steps}"
            )
        every_epochs = 1 if every_epochs is None else every_epochs
        for name, value in (
            ("num_samples", num_samples),
            ("every_epochs", every_epochs),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` must be a positive int. Received: {name}={value!r}"
                )
        self.folder = pathlib.Path(folder)
        self.x, self.y = to_numpy((string_arrays(x), y))
        self.num_samples = num_samples
        self.every_epochs = None if every_steps else every_epochs
        self.describe = describe
        self.bounding_box_format = bounding_box_format
        self.outlets = open_outlets(tensorboard, wandb)
        self.seed = seed

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.greedy = kept(self.model, Greedy)
        self.sampler = kept(self.model, Sampler, self.num_samples, True)
        self.has_begun = False

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if not self.has_begun:
            self.has_begun = True
            self.epoch = -1  # before the first one
            self.write()
            self.epoch = epoch

    def get_state(self):
        """What a `Checkpoint` keeps."""
        return {**super().get_state(), "has_begun": self.has_begun}

    def set_state(self, state):
        """Goes on from what `get_state` returned."""
        super().set_state(state)
        self.has_begun = state["has_begun"]

    def on_train_batch_end(self, batch, logs=None):
        if self.advance(batch):
            self.model.keep_weights()
            self.write()

    def on_epoch_end(self, epoch, logs=None):
        if self.every_epochs and (epoch + 1) % self.every_epochs == 0:
            self.write()

    def on_train_end(self, logs=None):
        for outlet in self.outlets:
            outlet.flush()

    def write(self):
        """Draws samples, and writes them to the folder and all outlets."""
        greedy = self.greedy.run(self.x, self.y)
        samples = self.sampler.draw(self.x, self.y, [self.seed])
        name = f"samples_{self.step:06d}.png"
        sheet = draw_sheet_of(self, greedy, samples)
        if sheet:
            with whole_file(self.folder / name) as new:
                new.write_bytes(sheet[0])
        records = self.records(greedy, samples, name if sheet else None)
        lines = [json.dumps(record) for record in records]
        append_lines(self.folder / "samples.jsonl", lines)
        for outlet in self.outlets:
            outlet.write(self.step, records, sheet)

    def records(self, greedy, samples, picture):
        """One dict for each input, of values that JSON can represent."""
        n = self.num_samples
        greedy_texts = self.texts(greedy["outputs"])
        texts = self.texts(samples["outputs"])

        def output(outputs, texts, row):
            held = take_rows(outputs, row)
            return {
                "output": plain(held, picture),
                **({} if texts is None else {"text": texts[row]}),
            }

        return [
            {
                "epoch": self.epoch,
                "step": self.step,
                "input": i,
                "greedy": {
                    **{k: plain(v[i]) for k, v in greedy["rewards"].items()},
                    **output(greedy["outputs"], greedy_texts, i),
                },
                "samples": [
                    {
                        "reward": plain(samples["rewards"][i, j]),
                        "log_prob": plain(samples["log_probs"][i, j]),
                        **output(samples["outputs"], texts, i * n + j),
                    }
                    for j in range(n)
                ],
            }
            for i in range(rows_of((self.x,)))
        ]

    def texts(self, outputs):
        """The strings that `describe` returns for each row, or None."""
        return None if self.describe is None else list(map(str, self.describe(outputs)))


def draw_sheet_of(logger, greedy, samples):
    """The picture of one step, see `draw_sheet`; None if nothing can be drawn."""
    images, n = images_below(logger.model, logger.x), logger.num_samples
    repeated = None if images is None else np.repeat(images, n, axis=0)
    own = logger.model.policy.bounding_box_format
    form = logger.bounding_box_format or own or "xyxy"
    first = output_images(greedy["outputs"], images, form)
    others = output_images(samples["outputs"], repeated, form)
    if first is None and (images is None or logger.describe is None):
        return None
    words = logger.texts(greedy["outputs"]), logger.texts(samples["outputs"])

    def cell(pictures, kind, reward, texts, row):
        text = f"{kind}{reward:.3g}" + ("" if texts is None else f"\n{texts[row]}")
        return (None if pictures is None else pictures[row]), text

    rows = []
    for i, rewards in enumerate(samples["rewards"]):
        line = [] if images is None else [(images[i], "input")]
        reward = greedy["rewards"]["reward"][i]
        line.append(cell(first, "greedy: ", reward, words[0], i))
        for j, reward in enumerate(rewards):
            line.append(cell(others, "", reward, words[1], i * n + j))
        rows.append(line)
    return draw_sheet(rows)


def images_below(owner, x):
    """The input images that outputs lie on, or None.

    Where a preprocessor resizes them, those that the model gets, as outputs have their
    size.

    Args:
        owner: a `RewardTuning`.
        x: inputs as the dataset yields them.
    """
    images = input_images(x)
    if images is None:
        return None
    resized = input_images(owner.preprocessed(x)[0], stretched=True)
    fits = resized is None or resized.shape[:3] == images.shape[:3]
    return images if fits else resized


def plain(value, picture=None):
    """Numbers, arrays and nests of them for JSON; null if not finite."""
    if isinstance(value, dict):
        return {name: plain(held, picture) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held, picture) for held in value]
    array = np.asarray(value)
    if array.size > MOST_NUMBERS:
        return {"shape": list(array.shape), "picture": picture}
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        array = np.where(np.isfinite(array), array.astype(object), None)
    return array.tolist()
