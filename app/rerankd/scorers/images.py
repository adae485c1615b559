"""Reads images that callers send: their kind and size first, then their pixels, as large as a model sees them.

Images are hostile until they are read. Only formats that Pillow decodes in C with known bounds are opened. The size is
checked by the header, before a pixel is decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rerankd.cache.lru import ENTRY_BYTES, Lru
from rerankd.config.extras import missing
from rerankd.domain import Document, FloatArray
from rerankd.errors import BadImage, ConfigError, InvalidRequest
from rerankd.recognition.files import read_json
from rerankd.tasks.read_images import SeenImage

# What a model sees, [height, width, 3], values from 0 to 255.
Pixels = NDArray[np.uint8]

_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
_READABLE: Final = "PNG, JPEG, WebP or GIF"
# The beginnings of other files that are taken for images, for messages.
_OTHERS: Final[Mapping[bytes, str]] = {
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "SVG or other XML",
    b"\0\0\x01\0": "ICO",
    b"8BPS": "Photoshop's",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP": "JPEG 2000",
}
_PROCESSORS: Final = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
_SETTINGS: Final = "preprocessor_config.json"
_LONGEST_REASON: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelBounds:
    """How many pixels a model is shown of an image: others are enlarged or made smaller. None: as its files say."""

    least: int | None = None
    most: int | None = None


def bad_image(problem: str, digest: bytes) -> InvalidRequest:
    """The error for the image with this digest."""
    return InvalidRequest(BadImage(problem=problem, digest=digest))


class ImageReader:
    """Turns images into patches as transformers does for Qwen2-VL and Qwen3-VL. Safe to use from threads."""

    def __init__(self, preprocess: Any, *, max_pixels: int, kept_bytes: int) -> None:  # noqa: ANN401 - transformers has no type for it
        self._preprocess = preprocess
        self._max_pixels = max_pixels
        self._kept: Lru[bytes, Pixels] = Lru(max_size=kept_bytes, size_of=lambda _, one: ENTRY_BYTES + one.nbytes)
        self._lock = Lock()

    @classmethod
    def load(cls, folder: Path, bounds: PixelBounds, *, max_pixels: int, kept_bytes: int) -> "ImageReader":
        """Read how a folder's model reads images. `max_pixels`: the most of an image that is sent, before it is made
        smaller. `kept_bytes`: of decoded images, which are read again in their pass and beside other queries.

        Raises:
            ConfigError: Pillow or torch is not installed, or the folder's model reads images in another way.
        """
        try:
            import PIL  # noqa: F401, PLC0415 - only models that read images need it
            from transformers import AutoImageProcessor  # noqa: PLC0415 - seconds, and only such models need it
        except ModuleNotFoundError as error:
            raise missing(str(error.name), extra="images", of="a model that reads images") from None
        if not (folder / _SETTINGS).is_file():
            raise ConfigError(f"no {_SETTINGS} in {folder}, which says how its images are read; download it again")
        kind = read_json(folder / _SETTINGS).get("image_processor_type")
        if kind not in _PROCESSORS:
            raise ConfigError(f"{folder / _SETTINGS} says {kind!r:.80}; only {_PROCESSORS[0]} is applied here")
        changes = {name: value for name, value in (("min_pixels", bounds.least), ("max_pixels", bounds.most)) if value}
        preprocess = AutoImageProcessor.from_pretrained(folder, backend="pil", **changes)
        return cls(preprocess, max_pixels=max_pixels, kept_bytes=kept_bytes)

    @property
    def merged(self) -> int:
        """How many patches of an image become one token."""
        return int(self._preprocess.merge_size) ** 2

    @property
    def identity(self) -> str:
        """What changes the patches of an image, for cache keys."""
        return repr(sorted(self._preprocess.to_dict().items()))

    def read(self, document: Document, *, owner: str) -> SeenImage:
        """Decode a document's image, so that one which cannot be read is refused here and not in a pass.

        Raises:
            InvalidRequest: it is none, another kind, broken, or too large.
        """
        pixels = self._pixels(document.image, document.digest, owner)
        height, width, _ = pixels.shape
        size = self._preprocess.patch_size
        return SeenImage(document.digest, height // size, width // size, document.image, owner, self.patches)

    def patches(self, image: bytes, digest: bytes, owner: str) -> FloatArray:
        """The patches of an image that was read; see `SeenImage`."""
        pixels = self._pixels(image, digest, owner)
        read = self._preprocess(
            images=[pixels],
            do_resize=False,
            do_convert_rgb=False,
            input_data_format="channels_last",
            return_tensors="np",
        )
        patches: FloatArray = read["pixel_values"]
        return patches

    def _pixels(self, image: bytes, digest: bytes, owner: str) -> Pixels:
        """As large as the model sees them. Those of one owner are not known to others, not even by the time it took."""
        key = blake2b(digest, digest_size=16, key=blake2b(owner.encode(), digest_size=16).digest()).digest()
        with self._lock:
            known = self._kept.get(key)
        if known is not None:
            return known
        pixels = self._decode(image, digest)
        with self._lock:
            self._kept.put(key, pixels, owner=owner)
        return pixels

    def _decode(self, image: bytes, digest: bytes) -> Pixels:
        from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415 - as above

        try:
            with Image.open(BytesIO(image), formats=_FORMATS) as opened:
                self._check_size(opened.size, digest)
                # The first frame of several.
                upright = ImageOps.exif_transpose(opened)
                return self._resized(_on_white(upright), digest)
        except InvalidRequest:
            raise
        except UnidentifiedImageError:
            raise bad_image(_kind_of(image), digest) from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise bad_image(self._too_large("it"), digest) from None
        except Exception as error:  # noqa: BLE001 - Pillow raises whatever its decoders meet in a broken file
            reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
            raise bad_image(f"it is broken ({reason}); send the whole file", digest) from None

    def _check_size(self, size: tuple[int, int], digest: bytes) -> None:
        width, height = size
        if width * height > self._max_pixels:
            raise bad_image(self._too_large(f"{width} x {height} pixels"), digest)
        if not width * height:
            raise bad_image("it has no pixels; send another", digest)

    def _too_large(self, what: str) -> str:
        return f"{what} is more than the {self._max_pixels} pixels that are allowed; send it smaller"

    def _resized(self, image: Any, digest: bytes) -> Pixels:  # noqa: ANN401 - Pillow is not there at import
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # noqa: PLC0415 - as above

        size = self._preprocess.size
        try:
            height, width = smart_resize(
                image.height,
                image.width,
                factor=self._preprocess.patch_size * self._preprocess.merge_size,
                min_pixels=size["shortest_edge"],
                max_pixels=size["longest_edge"],
            )
        except ValueError:
            what = f"{image.width} x {image.height} pixels is too narrow a strip: one side may be 200 times the other"
            raise bad_image(f"{what}; send a part of it", digest) from None
        return np.asarray(image.resize((width, height), resample=self._preprocess.resample))


def _on_white(image: Any) -> Any:  # noqa: ANN401 - as above
    """In three colours; what is transparent is white, as paper is."""
    from PIL import Image  # noqa: PLC0415 - as above

    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    opaque = Image.new("RGBA", image.size, "white")
    opaque.alpha_composite(image.convert("RGBA"))
    return opaque.convert("RGB")


def _kind_of(image: bytes) -> str:
    """What to say of bytes that are no image in a format that is read."""
    if not image:
        return f"it is empty; send {_READABLE}"
    box = image[4:12]
    if box[:4] == b"ftyp":
        named = "AVIF" if box[4:] in (b"avif", b"avis") else "HEIC or another film's format"
    else:
        named = next((name for start, name in _OTHERS.items() if image.lstrip()[: len(start)] == start), "")
    return f"it is {named or 'no image that is known here'}; send {_READABLE}"
