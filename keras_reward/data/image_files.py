"""Reading images from a folder or a tar file."""

import io
import os
import pathlib
import tarfile


class BrokenImageError(Exception):
    """An image file cannot be decoded; the message begins with its path."""


class ImageFiles:
    """The image files in a folder, or in a tar file that is read in place.

    Stores only names and positions, no open file, so it can be copied to other
    processes and used by several threads.

    Args:
        path: a folder, or an uncompressed tar file.
    """

    def __init__(self, path):
        import_pillow()
        self.path = os.fspath(path)
        self.members = None
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
            return os.path.isfile(self.path_of(name))
        return name in self.members

    def path_of(self, name):
        """The path of a file, for messages."""
        separator = os.sep if self.members is None else ":"
        return f"{self.path}{separator}{name}"

    def read(self, name):
        """A Pillow image in RGB; raises a `BrokenImageError` if it is broken."""
        image = import_pillow()
        try:
            return image.open(io.BytesIO(self._bytes(name))).convert("RGB")
        except image.UnidentifiedImageError as error:  # its text differs every time
            raise BrokenImageError(
                f"{self.path_of(name)}: no image in a format that Pillow knows"
            ) from error
        except Exception as error:  # Pillow's decoders raise all kinds of errors
            raise BrokenImageError(f"{self.path_of(name)}: {error}") from error

    def _bytes(self, name):
        if self.members is None:
            return pathlib.Path(self.path_of(name)).read_bytes()
        start, size = self.members[name]
        with open(self.path, "rb") as archive:
            archive.seek(start)
            return archive.read(size)


def import_pillow():
    """Pillow's module `Image`, or an error on how to install it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Reading images needs Pillow. Install it with `pip install pillow`."
        ) from error
    return Image
