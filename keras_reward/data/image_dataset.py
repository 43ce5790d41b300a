"""The base class of datasets of image files: batches of resized images, and reports."""

import warnings
from collections import defaultdict
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_reward.data.epoch_order import EpochOrder
from keras_reward.data.image_files import BrokenImageError, ImageFiles, import_pillow

EXAMPLES_IN_WARNING = 3


class Item(NamedTuple):
    """An image of the dataset. `annotation` is the reader's own."""

    image_id: int
    file_name: str
    height: int
    width: int
    annotation: Any


class Placement(NamedTuple):
    """The rectangle, in pixels, that an image fills in its resized version."""

    top: int
    left: int
    height: int
    width: int


class ImageDataset(EpochOrder, keras.utils.PyDataset):
    """Base class of readers: batches of resized images with their targets.

    Subclasses implement `read_items`, `target` and `collate`. `CocoDataset` has the
    arguments; here `annotations` is only the name of the source in messages.
    """

    def __init__(
        self,
        images,
        annotations,
        image_size,
        batch_size=32,
        shuffle=False,
        seed=0,
        pad_to_aspect_ratio=False,
        drop_remainder=False,
        check_images=False,
        transform=None,
        **workers,
    ):
        super().__init__(**workers)
        if len(image_size) != 2 or min(image_size) < 1 or batch_size < 1:
            raise ValueError(
                "`image_size` must be (height, width) and `batch_size` positive. "
                f"Received: image_size={image_size}, batch_size={batch_size}"
            )
        self.image_size = tuple(image_size)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.pad_to_aspect_ratio = pad_to_aspect_ratio
        self.drop_remainder = drop_remainder
        self.transform = transform
        self.problems = defaultdict(list)
        self.annotations = annotations
        self._files = ImageFiles(images)
        self.items = self.read_items()
        if check_images:
            self._check_images()
        self._report()

    def read_items(self):
        """A list of an `Item` for each image; counts `problems` with the others."""
        raise NotImplementedError

    def target(self, item, placement):
        """The target of one image, which is at `placement` in its resized version."""
        raise NotImplementedError

    def collate(self, targets):
        """The targets of a batch, from a list of the targets of its images."""
        raise NotImplementedError

    def __len__(self):
        """The number of batches."""
        whole, rest = divmod(len(self.items), self.batch_size)
        return whole + (rest > 0 and not self.drop_remainder)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches. Received: {index}")
        start = index * self.batch_size
        positions = self.order(len(self.items))[start : start + self.batch_size]
        images, targets = zip(*map(self._load_or_replace, positions), strict=True)
        images = np.stack(images).astype("float32") / np.float32(255)
        targets = self.collate(targets)
        if self.transform is None:
            return images, targets
        return self.transform(images, targets)

    def warn_once(self, kind, which, consequence):
        """Counts a problem that is found during an epoch, and warns about it."""
        if which not in self.problems[kind]:
            self.problems[kind].append(which)
            message = f"{self.annotations}: {kind}: {which}. {consequence}"
            warnings.warn(message, stacklevel=2)

    def _check_images(self):
        readable = []
        for item in self.items:
            try:
                self._load(item)
                readable.append(item)
            except BrokenImageError as error:
                self.problems["broken image"].append(str(error))
        self.items = readable

    def _report(self):
        summary = "; ".join(
            f"{kind}: {len(which)} ({', '.join(which[:EXAMPLES_IN_WARNING])}"
            f"{', ...' if len(which) > EXAMPLES_IN_WARNING else ''})"
            for kind, which in self.problems.items()
        )
        if len(self) == 0:
            raise ValueError(
                f"{self.annotations} leaves no batch of images: {len(self.items)} "
                f"usable for batch_size={self.batch_size}. "
                f"{summary or 'There are no others'}"
            )
        if summary:
            warnings.warn(
                f"{self.annotations}: {len(self.items)} images can be used. {summary}. "
                "All of them are in the dataset's `problems`.",
                stacklevel=4,  # where the reader is made
            )

    def _load_or_replace(self, position):
        for candidate in range(position, position + len(self.items)):
            try:
                return self._load(self.items[candidate % len(self.items)])
            except BrokenImageError as error:
                self.warn_once(
                    "broken image", str(error), "Another one takes its place."
                )
        raise ValueError(
            f"None of the {len(self.items)} images can be read, the last one: "
            f"{self.problems['broken image'][-1]}"
        )

    def _load(self, item):
        image = read_checked(self._files, item.file_name, item)
        placement = place(item, self.image_size, self.pad_to_aspect_ratio)
        pixels = resize(image, placement, self.image_size, "BILINEAR")
        return pixels, self.target(item, placement)


def read_checked(files, name, item):
    """Reads an image and checks that it has the aspect ratio of its entry."""
    image = files.read(name)
    width, height = image.size
    # Sizes that were scaled and rounded may differ by a pixel.
    if abs(width * item.height - height * item.width) > max(*image.size, *item[2:4]):
        raise BrokenImageError(
            f"{files.path_of(name)}: {width} x {height} pixels, but its annotations "
            f"are for {item.width} x {item.height}"
        )
    return image


def place(item, image_size, pad_to_aspect_ratio):
    """The `Placement` of an image in its resized version."""
    rows, columns = image_size
    if not pad_to_aspect_ratio:
        return Placement(0, 0, rows, columns)
    scale = min(rows / item.height, columns / item.width)
    height = max(1, round(scale * item.height))
    width = max(1, round(scale * item.width))
    return Placement((rows - height) // 2, (columns - width) // 2, height, width)


def resize(image, placement, image_size, resampling):
    """A Pillow image as an array, resized to its placement and padded with 0."""
    method = getattr(import_pillow().Resampling, resampling)
    pixels = np.asarray(image.resize((placement.width, placement.height), method))
    if placement[2:] == tuple(image_size):
        return pixels
    canvas = np.zeros((*image_size, *pixels.shape[2:]), pixels.dtype)
    top, left, height, width = placement
    canvas[top : top + height, left : left + width] = pixels
    return canvas
