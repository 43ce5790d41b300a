"""Reading images from a folder or a tar file."""

import io
import os
import pathlib
import tarfile

# As many as Pillow itself warns of: a quarter of a GiB in RGB. A file of half a
# megabyte can hold many more, if they are black.
MAX_PIXELS = 89_478_485
MAX_BYTES = 2**30  # of a file
RUN_PROGRAMS = ("EPS",)  # formats that Pillow has another program read
SHOWN = 200  # characters of a name


class BrokenImageError(Exception):
    """An image file cannot be decoded; the message begins with its path."""


class ImageFiles:
    """The image files in a folder, or in a tar file that is read in place.

    Stores only names and positions, no open file, so it can be copied to other
    processes and used by several threads.

    Names come from files of others. One that leads out of the folder, by `..`, as an
    absolute path or through a link, is that of no image: see `leads_out`.

    Args:
        path: a folder, or an uncompressed tar file.
    """

    def __init__(self, path):
        import_pillow()
        self.path = os.fspath(path)
        self.members = None
        self.folder = os.path.realpath(self.path)
        if os.path.isdir(self.path):
            return
        try:
            with tarfile.open(self.path, "r:") as archive:
                self.members = {
                    member.name.removeprefix("./"): (member.offset_data, member.size)
                    for member in archive
                    if member.isreg()
                }
        except tarfile.TarError as error:
            raise ValueError(
                "Images must lie in a folder or in an uncompressed tar file. "
                f"Received: {self.path} ({error})"
            ) from error

    def __contains__(self, name):
        if self.members is None:
            path = self._resolved(name)
            return path is not None and self._holds(path) and os.path.isfile(path)
        return name in self.members

    def leads_out(self, name):
        """Whether a name is that of a file outside the folder, links resolved."""
        path = self._resolved(name) if self.members is None else None
        return path is not None and not self._holds(path)

    def path_of(self, name):
        """The path of a file, for messages."""
        separator = os.sep if self.members is None else ":"
        return f"{self.path}{separator}{shown(name)}"

    def read(self, name):
        """A Pillow image in RGB; raises a `BrokenImageError` if it is broken.

        The size in its header is checked before pixels are decoded.
        """
        library = import_pillow()
        try:
            image = library.open(io.BytesIO(self._bytes(name)))
            check_header(image)
            return image.convert("RGB")
        except library.UnidentifiedImageError as error:  # its text differs every time
            raise BrokenImageError(
                f"{self.path_of(name)}: no image in a format that Pillow knows"
            ) from error
        except Exception as error:  # Pillow's decoders raise all kinds of errors
            raise BrokenImageError(f"{self.path_of(name)}: {error}") from error

    def _resolved(self, name):
        """The path of a file without links; None for what no file system takes."""
        path = os.path.join(self.folder, name)
        try:
            is_plain = os.path.basename(name) == name and not os.path.islink(path)
            # Most names are plain, for which resolving all folders would be slow.
            is_plain = is_plain and name not in ("", os.curdir, os.pardir)
            return path if is_plain else os.path.realpath(path)
        except (OSError, ValueError):  # such as a NUL
            return None

    def _holds(self, path):
        """Whether a resolved path lies in the folder."""
        return path.startswith(os.path.join(self.folder, ""))

    def _bytes(self, name):
        if self.members is None:
            path = self._resolved(name)
            if path is None or not self._holds(path):
                raise BrokenImageError("it is not in the folder of images")
            check_bytes(os.path.getsize(path))
            return pathlib.Path(path).read_bytes()
        start, size = self.members[name]
        check_bytes(size)
        with open(self.path, "rb") as archive:
            archive.seek(start)
            return archive.read(size)


def check_bytes(size):
    """Raises if a file is too large to be an image."""
    if not 0 <= size <= MAX_BYTES:
        raise BrokenImageError(f"a file of {size} bytes, not of up to {MAX_BYTES}")


def check_header(image):
    """Raises for an opened Pillow image that should not be decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BrokenImageError(
            f"{width} x {height} pixels, more than {MAX_PIXELS} in all"
        )
    if image.format in RUN_PROGRAMS:
        raise BrokenImageError(
            f"{image.format} files are not read, since another program would run"
        )


def shown(text):
    """A text from a file of others, for messages: short, without control characters."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def import_pillow():
    """Pillow's module `Image`, or an error on how to install it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Reading images needs Pillow. Install it with `pip install pillow`."
        ) from error
    return Image
