"""Scenes: real handwritten digits over real photographs, made on demand."""

from typing import NamedTuple

import keras
import numpy as np

from keras_reward.data.epoch_order import EpochOrder
from keras_reward.data.scene_captions import SINGULAR, Group, Layout, wordings
from keras_reward.data.scene_pictures import (
    enlarged,
    load_digit_images,
    load_photographs,
)

SPLITS = ("train", "test")
TASKS = ("boxes", "captions", "panoptic")
SIZE = 64  # pixels; the lengths below are for scenes of this size

# Classes of panoptic maps. Digit d has class d + 1, since 0 means void.
COLOUR_CLASS, GREY_CLASS = 11, 12
STUFF_CLASSES = (COLOUR_CLASS, GREY_CLASS)
CLASS_NAMES = SINGULAR  # of labels

# Numbers of digits in the first and the second group, and their frequencies.
COUNTS = ((1, 0), (2, 0), (1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
COUNT_SHARES = (0.15, 0.15, 0.22, 0.11, 0.11, 0.09, 0.085, 0.085)
SIZES = {1: (22, 30), 2: (20, 28), 3: (18, 24)}  # of digits, by their number in a row
CENTRES = {1: (32,), 2: (20, 44), 3: (12, 32, 52)}  # along the row
JITTER = {1: 14.0, 2: 4.0, 3: 2.0}  # along the row
ROWS, ROW_JITTER = (19, 45), 4.0  # centres across rows
MIN_VISIBLE = 0.7  # of a digit's ink
INK = 0.5  # opacity from which a pixel belongs to a digit


class Scene(NamedTuple):
    """One scene.

    Attributes:
        image: `(size, size, 3)` float32 RGB in [0, 1].
        boxes: `(digits, 4)` float32 "xyxy" in pixels, tight around the visible ink.
        labels: `(digits,)` int32, 0 to 9.
        panoptic: `(size, size, 2)` int32, class and instance: a digit d has class
            d + 1 and, in the order of the boxes, instance 1, 2, ...; photographs have
            `COLOUR_CLASS` or `GREY_CLASS` and instance 0.
        captions: five strings.
        layout: what the captions say, a `Layout`.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    panoptic: np.ndarray
    captions: list
    layout: Layout


class Scenes(EpochOrder, keras.utils.PyDataset):
    """Scenes of handwritten digits over photographs, made on demand.

    Each scene has one to four digits, in one or two groups of equal digits, over two
    photographs, one in colour and one in black and white. A scene is determined by its
    split and its index, so the dataset can have any length, is the same everywhere, and
    needs no disk space. The two splits have no image of a digit and no photograph in
    common.

    Boxes and maps show only what is visible: a digit may hide at most 30 % of another
    one. The captions come from a grammar, `wordings` in `scene_captions.py`, and are
    true of the scene.

    Needs scikit-learn, scikit-image and Pillow, for the digits and photographs.

    Args:
        split: `"train"` or `"test"`.
        count: number of scenes.
        task: what the targets are, see below. Default `"boxes"`.
        batch_size: scenes in a batch; the last batch may be smaller. Default 32.
        start: index of the first scene. Default 0.
        vocabulary: a `Vocabulary` that turns captions into token ids. Default None:
            captions are strings.
        transform: a function of `(images, targets)` that returns the batch, such as
            `(x, y, sample_weight)`. Default None.
        size: height and width of the images, at least 32. Default 64.
        shuffle: whether each epoch has its own order, which follows from `seed` and
            the number of the epoch, see `set_epoch`. Default False.
        seed: int, seed of the orders. Default 0.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of
            `keras.utils.PyDataset`.

    Batch: `(images, targets)` with images `(B, size, size, 3)` float32 in [0, 1] and
    the targets of the task:

    - `"boxes"`: dict of `boxes` `(B, 4, 4)` float32 "xyxy" in pixels, and `labels`
      `(B, 4)` int32, the digits, -1 for padding;
    - `"captions"`: `(B, 5, T)` int32 ids, or lists of five strings;
    - `"panoptic"`: `(B, size, size, 2)` int32, class and instance, see `Scene`.

    Raises:
        ValueError: for an unknown split or task, and for numbers out of range.
        ImportError: if a package is missing.

    Example:

    ```python
    from keras_reward.data import Scenes, Vocabulary

    images, captions = Scenes("train", count=64, task="captions")[0]
    captions[0][1]  # "two zeros above a one"
    vocabulary = Vocabulary.from_captions(sum(captions, []), max_length=12)
    scenes = Scenes("train", 64, task="captions", vocabulary=vocabulary)
    images, ids = scenes[0]  # (32, 64, 64, 3), (32, 5, 12)
    ```
    """

    def __init__(
        self,
        split,
        count,
        task="boxes",
        batch_size=32,
        start=0,
        vocabulary=None,
        transform=None,
        size=SIZE,
        shuffle=False,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_split(split)
        if task not in TASKS:
            raise ValueError(f"`task` must be one of {TASKS}. Received: task={task!r}")
        check_numbers(count=(count, 1), batch_size=(batch_size, 1), start=(start, 0))
        check_numbers(size=(size, 32))
        self.split = split
        self.count = count
        self.task = task
        self.batch_size = batch_size
        self.start = start
        self.vocabulary = vocabulary
        self.transform = transform
        self.size = size
        self.shuffle = shuffle
        self.seed = seed

    def __len__(self):
        return -(-self.count // self.batch_size)

    def __getitem__(self, batch):
        if not 0 <= batch < len(self):
            raise IndexError(
                f"There are {len(self)} batches. Received: batch number {batch}"
            )
        first = batch * self.batch_size
        order = self.order(self.count)[first : first + self.batch_size]
        indices = (self.start + order).tolist()
        scenes = [make_scene(self.split, index, self.size) for index in indices]
        images = np.stack([scene.image for scene in scenes])
        targets = self.targets(scenes)
        return self.transform(images, targets) if self.transform else (images, targets)

    def targets(self, scenes):
        """The task's targets of some scenes."""
        if self.task == "boxes":
            return pad_boxes(scenes)
        if self.task == "panoptic":
            return np.stack([scene.panoptic for scene in scenes])
        captions = [scene.captions for scene in scenes]
        return captions if self.vocabulary is None else self.vocabulary.encode(captions)


def pad_boxes(scenes):
    """Boxes and labels of scenes, padded to the maximum number of digits."""
    most = max(map(sum, COUNTS))
    boxes = np.zeros((len(scenes), most, 4), "float32")
    labels = np.full((len(scenes), most), -1, "int32")
    for i, scene in enumerate(scenes):
        boxes[i, : len(scene.boxes)] = scene.boxes
        labels[i, : len(scene.labels)] = scene.labels
    return {"boxes": boxes, "labels": labels}


def make_scene(split, index, size=SIZE):
    """Makes a `Scene`; the same arguments give the same scene.

    Args:
        split: `"train"` or `"test"`.
        index: int, 0 or greater.
        size: height and width of the image.
    """
    check_split(split)
    generator = np.random.default_rng([SPLITS.index(split), index])
    layout = draw_layout(generator)
    captions = [ways[generator.integers(len(ways))] for ways in wordings(layout)]
    image, panoptic = draw_background(split, generator, size)
    labels = np.repeat(
        [group.digit for group in layout.groups],
        [group.count for group in layout.groups],
    ).astype("int32")
    boxes = None
    while boxes is None:  # until every digit is visible enough
        stamps = place_digits(split, layout, labels, generator, size)
        boxes = stamp(image, panoptic, labels, stamps, generator)
    return Scene(image, boxes, labels, panoptic, captions, layout)


def draw_layout(generator):
    """Draws which digits there are, and how they are arranged."""
    choice, axis, place = generator.random(3)
    counts = COUNTS[np.searchsorted(np.cumsum(COUNT_SHARES[:-1]), choice, "right")]
    first = int(generator.integers(10))
    second = (first + int(generator.integers(1, 10))) % 10  # a different digit
    groups = [Group(n, d) for n, d in zip(counts, (first, second), strict=True) if n]
    axis = "vertical" if axis < 0.5 else "horizontal"
    return Layout(tuple(groups), axis, int(place < 0.5))


def draw_background(split, generator, size):
    """An image of two photographs, next to or above each other, and its map."""
    photographs = load_photographs(split, size)
    image = np.empty((size, size, 3), "float32")
    panoptic = np.zeros((size, size, 2), "int32")
    swap, turn, border = generator.random(3)
    kinds = ["colour", "grey"] if swap < 0.5 else ["grey", "colour"]
    border = round(size * (0.3 + 0.4 * border))
    for kind, part in zip(kinds, (slice(border), slice(border, None)), strict=True):
        region = (part, slice(None)) if turn < 0.5 else (slice(None), part)
        which, top, left = generator.random(3)
        photograph = photographs[kind][int(which * len(photographs[kind]))]
        height, width, _ = image[region].shape
        top = int(top * (photograph.shape[0] - height + 1))
        left = int(left * (photograph.shape[1] - width + 1))
        image[region] = photograph[top : top + height, left : left + width]
        panoptic[region][..., 0] = COLOUR_CLASS if kind == "colour" else GREY_CLASS
    return image, panoptic


def place_digits(split, layout, labels, generator, size):
    """Chooses an image of each digit, its size and its place.

    Returns:
        For each digit its opacity, `(side, side)` float32, and its top left corner.
    """
    numbers = iter(generator.random((len(labels), 4)))
    scale = size / SIZE
    stamps = []
    for row, group in enumerate(layout.groups):
        row = layout.place if len(layout.groups) == 1 else row
        for centre in CENTRES[group.count]:
            which, side, along, across = next(numbers)
            low, high = SIZES[group.count]
            side = round(scale * (low + side * (high - low)))
            along = centre + JITTER[group.count] * (2.0 * along - 1.0)
            across = ROWS[row] + ROW_JITTER * (2.0 * across - 1.0)
            place = [across, along] if layout.axis == "vertical" else [along, across]
            corner = [round(scale * middle - side / 2) for middle in place]
            images = load_digit_images(split)[group.digit]
            top, left = (min(max(0, c), size - side) for c in corner)
            stamps.append((enlarged(images[int(which * len(images))], side), top, left))
    return stamps


def stamp(image, panoptic, labels, stamps, generator):
    """Draws digits over image and map, unless one would hide too much of another.

    Returns:
        The boxes `(digits, 4)`, or None: nothing was drawn.
    """
    instances = np.zeros(image.shape[:2], "int32")
    for number, (opacity, top, left) in enumerate(stamps, 1):
        side = len(opacity)
        instances[top : top + side, left : left + side][opacity > INK] = number
    boxes = np.empty((len(stamps), 4), "float32")
    for number, (opacity, top, left) in enumerate(stamps, 1):
        side = len(opacity)
        visible = instances[top : top + side, left : left + side] == number
        if visible.sum() < MIN_VISIBLE * (opacity > INK).sum():
            return None
        rows, columns = (np.flatnonzero(visible.any(axis)) for axis in (1, 0))
        box = left + columns[0], top + rows[0], left + columns[-1] + 1
        boxes[number - 1] = *box, top + rows[-1] + 1
    for colour, (opacity, top, left) in zip(
        light_colours(generator, len(stamps)), stamps, strict=True
    ):
        side = len(opacity)
        region = image[top : top + side, left : left + side]
        region += opacity[..., None] * (colour - region)
    ink = instances > 0
    panoptic[ink, 0] = labels[instances[ink] - 1] + 1
    panoptic[ink, 1] = instances[ink]
    return boxes


def light_colours(generator, count):
    """Light colours of any hue, `(count, 3)` RGB in [0, 1]."""
    numbers = generator.random((count, 2), dtype="float32")
    # The corners of the hue circle are red, green and blue, a third of it apart.
    distance = np.abs((6.0 * numbers[:, :1] - np.array([0, 2, 4])) % 6.0 - 3.0)
    hue = np.clip(distance - 1.0, 0.0, 1.0)
    return 1.0 - 0.5 * numbers[:, 1:] * (1.0 - hue)


def check_split(split):
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}. Received: split={split!r}")


def check_numbers(**numbers):
    """Raises unless each number is an int of at least its minimum."""
    for name, (value, least) in numbers.items():
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(
                f"`{name}` must be an int of at least {least}. "
                f"Received: {name}={value!r}"
            )
