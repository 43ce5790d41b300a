"""The BSDS500 benchmark of boundaries: thinned, and matched one to one."""

import numpy as np

TOLERANCE = 0.0075  # of the diagonal, as in the benchmark
SMOOTHING, RIDGE_SMOOTHING = 1, 4  # radii of triangle filters, in pixels
MARGIN = 1.01  # by which a neighbour must be higher to suppress a pixel
BORDER = 5  # pixels along which probabilities fade: networks are noisy there
COUNTS = ("found", "truth", "correct", "predicted")


class BoundaryDetection:
    """ODS and OIS of boundaries: the benchmark of BSDS500.

    A predicted map is thinned to its ridges, as is usual for maps of networks, then at
    each threshold made a map of 0 and 1 and thinned to lines of one pixel. Its pixels
    are matched one to one with those of each person's map, as many as can be, no two
    farther apart than the tolerance. Recall is the share of the pixels of all people
    that are matched; precision is the share of predicted pixels that are matched with
    any person. All counts are summed over the images first.

    - ODS ("optimal dataset scale") is the best F, the harmonic mean of precision and
      recall, with one threshold for all images.
    - OIS ("optimal image scale") takes the best threshold of each image.

    Needs SciPy and scikit-image. A photograph of BSDS500 takes about 2 seconds with
    33 thresholds.

    The benchmark's own code also minimizes the distances within a matching and tries
    thresholds in between, which changes the third decimal.

    Args:
        tolerance: distance within which pixels match, as a share of the diagonal.
            Default 0.0075, that is 4.3 pixels in BSDS500.
        thresholds: how many, spread evenly in (0, 1), or a sequence of them.
            Default 33.
        suppress: whether to thin the predictions to their ridges before the thresholds
            ("non-maximum suppression"). Default True. Turn it off for maps of 0 and 1.

    Raises:
        ImportError: if SciPy or scikit-image is missing.
        ValueError: for a negative tolerance, and for thresholds outside of (0, 1).

    Example:

    ```python
    import numpy as np
    from keras_reward.evaluation import BoundaryDetection

    people = np.zeros((1, 2, 32, 48), "uint8")  # one image, two people
    people[0, 0, :, 20] = people[0, 1, :, 21] = 1
    predicted = np.zeros((1, 32, 48), "float32")
    predicted[0, :, 20] = 0.7
    boundaries = BoundaryDetection(tolerance=0.02)  # 1.15 pixels
    boundaries.update_state(people, predicted)
    boundaries.result()["ods"]  # 0.83: the ends of the line fade at the border
    ```

    Reference: Arbelaez et al. 2011, "Contour detection and hierarchical image
    segmentation", section 2; Dollar and Zitnick 2015, "Fast edge detection using
    structured forests", for the thinning to ridges.
    """

    def __init__(self, tolerance=TOLERANCE, thresholds=33, suppress=True):
        import_libraries()  # fails now, not after an epoch
        if np.ndim(thresholds) == 0:
            thresholds = np.arange(1, int(thresholds) + 1) / (int(thresholds) + 1)
        self.thresholds = np.sort(np.asarray(thresholds, "float32"))
        if (
            not len(self.thresholds)
            or not ((self.thresholds > 0.0) & (self.thresholds < 1.0)).all()
        ):
            raise ValueError(
                "`thresholds` must be in (0, 1), or how many there are, at least 1. "
                f"Received: thresholds={thresholds}"
            )
        if not tolerance >= 0.0:
            raise ValueError(
                "`tolerance` must be a share of the diagonal, 0 or greater. "
                f"Received: tolerance={tolerance}"
            )
        self.tolerance = tolerance
        self.suppress = suppress
        self.reset_state()

    def reset_state(self):
        """Forgets all images."""
        self._counts = []

    def update_state(self, y_true, y_pred):
        """Adds images.

        Args:
            y_true: maps of 0 and 1, `(images, people, height, width)` or with one
                person `(images, height, width)`, or a list with those of each image,
                which may differ in size and in the number of people. A map of zeros
                counts as nothing and can serve as padding.
            y_pred: probabilities, `(images, height, width)` or
                `(images, height, width, 1)`, or a list of one map for each image.
        """
        if len(y_true) != len(y_pred):
            raise ValueError(
                "`y_true` and `y_pred` must hold the same number of images. "
                f"Received: {len(y_true)} and {len(y_pred)}"
            )
        for people, predicted in zip(y_true, y_pred, strict=True):
            people, predicted = np.asarray(people), np.asarray(predicted, "float32")
            if predicted.ndim == 3 and predicted.shape[-1] == 1:
                predicted = predicted[..., 0]
            people = people[None] if people.ndim == 2 else people
            if predicted.ndim != 2 or people.shape[1:] != predicted.shape:
                raise ValueError(
                    "An image needs one map of probabilities, (height, width), and the "
                    "maps of people of the same size, (people, height, width). "
                    f"Received: y_pred of shape {predicted.shape}, y_true of shape "
                    f"{people.shape}"
                )
            self._counts.append(self._count(people > 0, predicted))

    def _count(self, people, predicted):
        """Counts of an image, `(thresholds, 4)`: see `COUNTS`."""
        _, morphology = import_libraries()
        distance = self.tolerance * np.hypot(*predicted.shape)
        if self.suppress:
            predicted = ridges(predicted)
        people = [Pixels(person, distance) for person in people]
        truth = sum(person.number for person in people)
        counts, before = [], None
        for threshold in self.thresholds:
            above = predicted >= threshold
            if before is None or not np.array_equal(above, before):
                rows, columns = np.nonzero(morphology.thin(above))
                matches = [person.matches(rows, columns) for person in people]
                correct = np.zeros(len(rows), bool)
                for matched in matches:
                    correct |= matched
                found = sum(int(matched.sum()) for matched in matches)
                counts.append((found, truth, int(correct.sum()), len(rows)))
                before = above
            else:
                counts.append(counts[-1])
        return np.array(counts, "int64")

    def result(self):
        """The scores of all images so far.

        Returns:
            dict of floats `ods`, `ods_threshold` (where F is best) and `ois`, and of
            arrays `(thresholds,)`: `thresholds`, `precision`, `recall` and `f`. What
            has nothing to divide by is 0.
        """
        counts = np.stack(self._counts) if self._counts else np.zeros((1, 1, 4), int)
        precision, recall, f = scores(counts.sum(0))
        best = np.argmax(scores(counts)[2], axis=1)
        chosen = counts[np.arange(len(counts)), best].sum(0)
        return {
            "ods": float(f.max()),
            "ods_threshold": float(self.thresholds[np.argmax(f)]),
            "ois": float(scores(chosen)[2]),
            "thresholds": self.thresholds,
            "precision": precision,
            "recall": recall,
            "f": f,
        }


def boundary_detection(y_true, y_pred, **kwargs):
    """ODS and OIS of the boundaries of a dataset: see `BoundaryDetection`.

    Args:
        y_true, y_pred: as for `BoundaryDetection.update_state`.
        **kwargs: arguments of `BoundaryDetection`.

    Returns:
        dict, as returned by `BoundaryDetection.result`.

    Example:

    ```python
    import numpy as np
    from keras_reward.evaluation import boundary_detection

    person = np.zeros((1, 32, 48), "uint8")
    person[0, :, 20] = 1
    boundary_detection(person, person, suppress=False)["ods"]  # 1.0
    ```
    """
    boundaries = BoundaryDetection(**kwargs)
    boundaries.update_state(y_true, y_pred)
    return boundaries.result()


class Pixels:
    """The boundary pixels of one person, to match with predicted ones.

    Args:
        person: bools `(height, width)`.
        distance: the farthest that two pixels match, in pixels.
    """

    def __init__(self, person, distance):
        self.number = int(person.sum())
        reach = int(distance)
        # The number of each pixel, -1 where there is none, with a border of these.
        self.numbers = np.full(np.add(person.shape, 2 * reach), -1, "int32")
        inside = tuple(slice(reach, reach + size) for size in person.shape)
        self.numbers[inside][person] = np.arange(self.number)
        steps = np.arange(2 * reach + 1)
        down, right = (x.ravel() for x in np.meshgrid(steps, steps, indexing="ij"))
        squares = (down - reach) ** 2 + (right - reach) ** 2
        near = squares <= distance**2
        self.offsets = down[near] * self.numbers.shape[1] + right[near]

    def matches(self, rows, columns):
        """Which of some pixels are matched in a matching of maximum cardinality.

        Args:
            rows, columns: of the predicted pixels, `(pixels,)`.

        Returns:
            bools `(pixels,)`.
        """
        sparse = import_libraries()[0].sparse
        corners = rows * self.numbers.shape[1] + columns
        partners = self.numbers.ravel()[corners[:, None] + self.offsets]
        possible = partners >= 0
        # A matching is a flow through pipes of width 1: from a source to the predicted
        # pixels, on to their partners, and to a sink. (SciPy's own function for
        # matchings now and then takes minutes for such graphs.)
        predicted, sink = len(rows), len(rows) + self.number + 1
        pipes = [predicted, *possible.sum(1), *[1] * self.number, 0]
        ends = [
            np.arange(1, predicted + 1),
            partners[possible] + predicted + 1,
            np.full(self.number, sink),
        ]
        graph = sparse.csr_matrix(
            (
                np.ones(sum(map(len, ends)), "int32"),
                np.concatenate(ends).astype("int32"),
                np.concatenate([[0], np.cumsum(pipes)]).astype("int32"),
            ),
            shape=(sink + 1, sink + 1),
        )
        flow = sparse.csgraph.maximum_flow(graph, 0, sink, method="dinic").flow
        return flow[[0]].toarray()[0, 1 : predicted + 1] > 0


def ridges(probabilities):
    """Thins a map of probabilities: what is lower than across its line becomes 0.

    The direction across a line is estimated from the curvature of the smoothed map.
    Along the border, 5 pixels wide, probabilities fade to 0.

    Args:
        probabilities: `(height, width)`.

    Returns:
        `(height, width)` float32, slightly smoothed.

    Reference: `edgesNms` of Dollar and Zitnick's code, with its rough angles.
    """
    ndimage = import_libraries()[0].ndimage

    def smooth(values, radius):
        triangle = 1.0 + radius - np.abs(np.arange(-radius, radius + 1))
        for axis in (0, 1):
            values = ndimage.convolve1d(values, triangle / triangle.sum(), axis)
        return values

    heights = smooth(np.asarray(probabilities, "float32"), SMOOTHING)
    down, right = np.gradient(smooth(heights, RIDGE_SMOOTHING))
    right_down, right_right = np.gradient(right)
    down_down = np.gradient(down, axis=0)
    sign = np.where(right_down > 0.0, -1.0, 1.0)  # never 0: there are straight lines
    angle = np.arctan(down_down * sign / (right_right + 1e-5))
    place = np.indices(heights.shape).astype("float32")
    across = np.stack([np.sin(angle), np.cos(angle)])
    kept = np.ones(heights.shape, bool)
    for side in (-1.0, 1.0):
        neighbour = ndimage.map_coordinates(
            heights, place + side * across, order=1, mode="nearest"
        )
        kept &= MARGIN * heights >= neighbour
    fading = [np.minimum(np.arange(n), np.arange(n)[::-1]) for n in heights.shape]
    fading = [np.minimum(steps / BORDER, 1.0) for steps in fading]
    return (heights * kept * np.multiply.outer(*fading)).astype("float32")


def scores(counts):
    """Precision, recall and F `(...)` of counts `(..., 4)`; 0 for 0 divided by 0."""
    found, truth, correct, predicted = np.moveaxis(counts, -1, 0)
    recall = found / np.maximum(truth, 1)
    precision = correct / np.maximum(predicted, 1)
    total = precision + recall
    return precision, recall, 2.0 * precision * recall / np.where(total > 0, total, 1.0)


def import_libraries():
    """SciPy with its modules used here, and `skimage.morphology`."""
    try:
        import scipy.ndimage
        import scipy.sparse.csgraph
        import skimage.morphology
    except ImportError as error:
        raise ImportError(
            "The benchmark of boundaries needs SciPy and scikit-image. Install both "
            "with `pip install scikit-image`."
        ) from error
    return scipy, skimage.morphology
