"""Pictures and masks of `semantic_segmentation.py`: from a folder, and in batches."""

import keras
import numpy as np
from PIL import Image, ImageOps

VOID = 255
PARTS = ("test", "validation", "train", "train", "train")  # of a folder's pictures
MASK_MODES = ("1", "L", "P", "I", "I;16")
GAINS = (0.7, 1.3)  # of scenes to train on, in brightness


def read_folder(folder, size):
    """Three pairs of images and labels, as in `Task`: train, validation and test.

    Args:
        folder: has `images/` and `masks/`, with files of the same names but for what is
            behind the dot.
        size: height and width that images and masks are resized to.
    """
    images, masks = (
        {path.stem: path for path in sorted((folder / name).glob("*.*"))}
        for name in ("images", "masks")
    )
    if len(images) < len(PARTS) or images.keys() != masks.keys():
        alone = sorted(images.keys() ^ masks.keys())
        raise SystemExit(
            f"Expected {folder}/images and {folder}/masks with files of the same "
            f"names, at least {len(PARTS)}. Received: {len(images)} images and "
            f"{len(masks)} masks"
            + (f", alone: {', '.join(alone[:5])}" if alone else "")
        )
    names = sorted(images)
    parts = []
    for part in ("train", "validation", "test"):
        chosen = [n for i, n in enumerate(names) if PARTS[i % len(PARTS)] == part]
        pictures = [read_image(images[name], size) for name in chosen]
        labels = [read_mask(masks[name], size) for name in chosen]
        parts.append((np.stack(pictures), np.stack(labels)))
    return parts


def read_image(path, size):
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return np.asarray(image.resize((size, size)), "float32") / 255.0


def read_mask(path, size):
    mask = Image.open(path)
    if mask.mode not in MASK_MODES:
        raise SystemExit(
            "Expected masks with one channel of labels, or a palette. "
            f"Received: {path}, of mode {mask.mode}"
        )
    labels = np.asarray(mask.resize((size, size), Image.Resampling.NEAREST), "int32")
    return labels[..., None]


def as_binary(labels, source):
    """1 where there is something: a digit, or any label but 0 in a folder."""
    something = labels < 10 if source == "scenes" else labels > 0
    return np.where(labels == VOID, VOID, something).astype("int32")


class Pictures(keras.utils.PyDataset):
    """Batches of pictures, shuffled in every epoch.

    Args:
        noise: as for `add_noise`, or None. With it, pictures have other colours and new
            noise in every epoch, so that there are always new ones.
    """

    def __init__(self, images, labels, batch_size, noise, rng):
        super().__init__()
        self.images, self.labels = images, labels
        self.batch_size = min(batch_size, len(images))
        self.noise, self.rng = noise, rng
        self.on_epoch_end()

    def __len__(self):
        return len(self.images) // self.batch_size

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size :][: self.batch_size]
        images = self.images[rows]
        if self.noise:
            images = add_noise(recolour(images, self.rng), self.noise, self.rng)
        return images, self.labels[rows]

    def on_epoch_end(self):
        self.order = self.rng.permutation(len(self.images))


def recolour(images, rng):
    """Other colours and another brightness for each image; what is grey stays grey."""
    images = np.stack([image[..., rng.permutation(3)] for image in images])
    return images * rng.uniform(*GAINS, (len(images), 1, 1, 1)).astype("float32")


def add_noise(images, noise, rng):
    """Images with noise of a standard deviation, the same or not in all 3 channels."""
    deviation, channels = noise
    shape = (*images.shape[:-1], channels)
    return images + deviation * rng.standard_normal(shape, "float32")
