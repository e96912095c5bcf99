"""Converts the colours of a picture file to opaque sRGB of 8 bits, or refuses them."""

import io

import numpy as np
from PIL import Image, ImageCms

from teacher_server.pictures.files import NotOnePicture, check_profile

_SRGB = ImageCms.createProfile("sRGB")
_SRGB_GAMMA = 1 / 2.2
_SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_GAMMA_OFF, _CHROMATICITY_OFF = 0.03, 0.02
_LEVELS_OFF = 3
"""Levels of 255: a profile this near to sRGB counts as sRGB, so that rounding changes no colour."""
_SAVE = "save it with sRGB colours"
_SCALES = {2: 85, 4: 17}
"""Pillow's factor for a grey level of so many bits."""


def to_srgb(picture: Image.Image, depth: int) -> Image.Image:
    """Returns the picture of a PNG or JPEG in mode RGB, with the colours of a screen.

    Args:
        picture: The picture as Pillow opens it, loaded.
        depth: The bits of a sample of a PNG file; 8 for a JPEG file.

    Raises:
        NotOnePicture: The picture is transparent, or its colours cannot be converted.
    """
    if picture.mode == "CMYK":
        raise NotOnePicture(f"it has print colours (CMYK): {_SAVE}")
    if _see_through(picture, depth):
        raise NotOnePicture(
            "it is transparent in places, where its background is not known: save it without transparency"
        )
    info = picture.info
    info.pop("transparency", None)  # Pillow would warn of it
    if picture.mode.startswith("I"):  # 16-bit grey levels, which Pillow would clip at 255
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8))
    grey = picture.mode in ("1", "L", "LA")
    plain = picture.convert("L" if grey else "RGB")
    if profile := info.get("icc_profile"):
        return _converted(plain, profile)
    if "srgb" not in info:
        _check_gamma(info.get("gamma"), info.get("chromaticity"))
    return plain.convert("RGB")


def _see_through(picture: Image.Image, depth: int) -> bool:
    """Returns whether any pixel is not opaque."""
    if picture.mode in ("LA", "RGBA"):
        return picture.getextrema()[-1][0] < 255  # type: ignore[index]
    clear = picture.info.get("transparency")
    if clear is None:
        return False
    pixels = np.asarray(picture)
    if picture.mode == "P":
        opacity = np.full(256, 255, np.uint8)
        if isinstance(clear, bytes):
            opacity[: len(clear)] = np.frombuffer(clear[:256], np.uint8)
        else:
            opacity[clear] = 0
        return bool((opacity[pixels] < 255).any())
    if picture.mode == "RGB":
        # Pillow keeps the higher 8 of 16 bits: all colours with these count as the transparent one
        colour = [value >> 8 if depth == 16 else value for value in clear]
        return bool((pixels == colour).all(2).any())
    if picture.mode == "1":
        return bool((pixels == bool(clear)).any())
    return bool((pixels == clear * _SCALES.get(depth, 1)).any())


def _check_gamma(gamma: float | None, chromaticity: tuple[float, ...] | None) -> None:
    if gamma is not None and abs(gamma - _SRGB_GAMMA) > _GAMMA_OFF:
        raise NotOnePicture(f"its gamma is {gamma:g}, not sRGB's {_SRGB_GAMMA:.5f}: {_SAVE}")
    if chromaticity is not None and not np.allclose(chromaticity, _SRGB_CHROMATICITY, 0, _CHROMATICITY_OFF):
        raise NotOnePicture(f"its primary colours (cHRM) are not sRGB's: {_SAVE}")


def _converted(picture: Image.Image, profile: bytes) -> Image.Image:
    """Converts a picture in mode RGB or L from a profile to sRGB; sRGB's own colours stay unchanged."""
    check_profile(profile)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if picture.mode == "L" and space == "RGB":
            picture = picture.convert("RGB")
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(source, _SRGB, picture.mode, "RGB", intent)
        probe = _probe(picture.mode)
        change = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int) - np.asarray(
            probe.convert("RGB")
        )
        if abs(change).max() <= _LEVELS_OFF:
            return picture.convert("RGB")
        converted = ImageCms.applyTransform(picture, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise NotOnePicture(f"its colour profile cannot be used ({error}): {_SAVE}") from error
    assert converted is not None
    return converted


def _probe(mode: str) -> Image.Image:
    """Returns a picture with a sample of all colours."""
    levels = np.linspace(0, 255, 9 if mode == "RGB" else 256).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3))
