"""A shape turning, as an animated GIF."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.report_mesh import turned

TURN_MS = 3000


def turn(vertices: np.ndarray, frames: int, margin: float = 0.06) -> np.ndarray:
    """A pose [V, 3] of the image frame turned about the picture's vertical, as given first: [frames, V, 3].

    The axis stands still in the picture's middle and the scale is one for all frames, so that nothing breathes.
    """
    centred = vertices - (vertices.min(0) + vertices.max(0)) / 2
    views = np.concatenate([turned(centred[None], 360 * i / frames) for i in range(frames)])
    return views * ((1 - margin) / np.maximum(np.abs(views[..., :2]).max(), 1e-9))


def gif(frames: np.ndarray) -> bytes:
    """An endless GIF on white of pictures [F, H, W, 4] uint8; one turn takes `TURN_MS`."""
    share = frames[..., 3:].astype(np.float32) / 255
    solid = np.round(frames[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    # One palette for all frames, without dithering: colours that stand still do not flicker.
    palette = Image.fromarray(solid.reshape(-1, *solid.shape[2:])).quantize(255)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in solid]
    sink = io.BytesIO()
    pictures[0].save(
        sink, "GIF", save_all=True, append_images=pictures[1:], duration=round(TURN_MS / len(frames)), loop=0
    )
    return sink.getvalue()
