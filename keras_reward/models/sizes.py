"""Checks of model sizes, and the shapes of an encoder."""

from keras_reward.nests import check_size

LARGEST = 2**20  # of any size
MOST_LAYERS = 1024


def check_sizes(**sizes):
    """Raises if one of the named sizes is not a positive whole number, or absurd."""
    for name, size in sizes.items():
        check_size(name, size, LARGEST)


def check_layers(**numbers):
    """Raises if one of the named numbers of layers is not one, or absurd. 0 is one."""
    for name, number in numbers.items():
        check_size(name, number, MOST_LAYERS, smallest=0)


def encoder_shapes(encoder):
    """The shape of an encoder's images, without the batch, and of its output."""
    try:
        images, memory = encoder.input_shape, encoder.output_shape
    except AttributeError:  # neither functional nor a built Sequential
        images = memory = None
    if [len(as_shape(shape)) for shape in (images, memory)] != [4, 3]:
        raise ValueError(
            "`encoder` must be a Keras model from images (batch, height, width, "
            "channels) to (batch, tokens, features) that knows these sizes before it "
            "is called. Wrap another one: `images = keras.Input((height, width, 3)); "
            "encoder = keras.Model(images, yours(images))`. "
            f"Received: {encoder!r} with inputs {images} and outputs {memory}"
        )
    return tuple(images[1:]), tuple(memory)


def as_shape(shape):
    """`shape`, or () unless it is a shape with known sizes except for the first."""
    known = isinstance(shape, tuple) and all(isinstance(n, int) for n in shape[1:])
    return shape if known else ()
