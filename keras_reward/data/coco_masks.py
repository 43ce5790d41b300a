"""COCO's polygons and run lengths, checked before pycocotools gets them.

Its C code trusts them: polygons far outside an image, and run lengths that are longer
than it, write beyond its memory and end the process.
"""

import numpy as np

from keras_reward.data.coco_files import is_integer, is_number

CORNERS = 3  # of a polygon at least
MAX_OUTLINE = 2**22  # pixels of all polygons; pycocotools needs 80 bytes for each
# Compressed run lengths are characters from "0" on, of 5 bits and one that says whether
# more follow, up to 32 bits in all.
FIRST_CHARACTER, VALUE, MORE, MAX_CHARACTERS = 48, 0x1F, 0x20, 7
SIGN = 0x10  # of the last character


def run_lengths(segmentation, image):
    """Converts COCO's polygons or run lengths to compressed run lengths.

    Args:
        segmentation: the JSON value.
        image: the image's entry.

    Raises:
        KeyError, TypeError, ValueError: unless it is one for an image of this size.
    """
    size = [image["height"], image["width"]]
    tools = import_masks()
    if isinstance(segmentation, list):
        check_polygons(segmentation, *size)
        return tools.merge(tools.frPyObjects(segmentation, *size))
    counts, own = segmentation["counts"], segmentation["size"]
    if not isinstance(own, list) or not all(map(is_integer, own)) or own != size:
        raise ValueError("a segmentation of another size than its image's")
    lengths = decompressed(counts) if isinstance(counts, str) else integers(counts)
    if not lengths or min(lengths) < 0 or sum(lengths) != size[0] * size[1]:
        raise ValueError("run lengths that do not fill the image")
    return tools.frPyObjects({"size": size, "counts": lengths}, *size)


def check_polygons(polygons, height, width):
    """Raises unless these are polygons near an image.

    A corner may be as far outside as the image is long.
    """
    if not polygons:
        raise ValueError("no polygon")
    outline = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(map(is_number, polygon)):
            raise TypeError("a polygon must be a list of numbers")
        if len(polygon) < 2 * CORNERS or len(polygon) % 2:
            raise ValueError("a polygon must have pairs of numbers, at least three")
        try:
            corners = np.array(polygon, "float64").reshape(-1, 2)
        except OverflowError as error:
            raise ValueError(
                "a polygon must have numbers that a float holds"
            ) from error
        side = np.array([width, height])
        if not ((corners >= -side) & (corners <= 2 * side)).all():  # NaN neither
            raise ValueError("a polygon far outside its image")
        steps = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1)
        outline += float(steps.sum()) + len(corners)
    if outline > MAX_OUTLINE:
        raise ValueError("polygons with too long an outline")


def integers(counts):
    """Run lengths as a list, if they are one of integers."""
    if not isinstance(counts, list) or not all(map(is_integer, counts)):
        raise TypeError("run lengths must be a list of integers or a string")
    return counts


def decompressed(text):
    """The run lengths in COCO's compressed form, a list.

    Each is the difference to the one two places before, from the fourth on, in
    characters of five bits, the lowest first. See `rleFrString` in pycocotools'
    `maskApi.c`, which reads beyond the end of a text whose last character says that
    more follow.
    """
    codes = np.frombuffer(text.encode("latin-1"), "uint8").astype("int64")
    codes = codes - FIRST_CHARACTER
    if not len(codes) or codes.min() < 0 or codes.max() > (VALUE | MORE):
        raise ValueError("characters that are no run lengths")
    ends = np.flatnonzero((codes & MORE) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if not len(ends) or ends[-1] != len(codes) - 1 or digits.max() > MAX_CHARACTERS:
        raise ValueError("run lengths that do not end")
    place = np.arange(len(codes)) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & VALUE) << (5 * place), starts)
    values -= ((codes[ends] & SIGN) > 0) * (np.int64(1) << (5 * digits))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values.tolist()


def import_masks():
    """pycocotools' module for masks, or an error on how to install it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError(
            "COCO's masks need pycocotools. Install it with `pip install pycocotools`."
        ) from error
    return mask
