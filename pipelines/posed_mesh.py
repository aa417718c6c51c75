"""The template in a predicted pose as a GLB file, in its own frame or as the camera sees it."""

from __future__ import annotations

import numpy as np
import torch

from models.acsm import ACSM
from models.articulation import skin
from models.camera import project
from models.gltf import write_glb
from pipelines.report_mesh import part_colors

TO_GLTF = (1.0, -1.0, -1.0)  # the image frame has y down and z away; glTF's viewer has y up and looks along -z


@torch.inference_mode()
def write_posed(
    path: str, net: ACSM, angles: torch.Tensor, camera: torch.Tensor | None = None, hypothesis: int = 0
) -> None:
    """Write one posed animal, coloured by part; its joints are the parts at their posed pivots, to pose it further.

    Args:
        angles: [P] radians.
        camera: [7] weak perspective: x right, y up, z towards the viewer, and [-1, 1] spans the network's window, so
            that a viewer that looks along -Z shows the photo's view. None: the template's frame, Y up, nose towards +Z.
        hypothesis: of the network's, whose angles these are.
    """
    t, moves = net.template, net.pose(angles.to(net.axes.device), hypothesis)
    pivots = (moves[:, :, :3] @ net.pivots[..., None])[..., 0] + moves[:, :, 3]  # type: ignore[index]
    points = torch.cat([skin(net.vertices, net.weights, moves), pivots])  # type: ignore[arg-type]
    if camera is not None:
        points = project(camera.to(points), points) * points.new_tensor(TO_GLTF)
    vertices, joints = np.split(points.cpu().numpy(), [len(t.vertices)])
    colors = (t.weights @ part_colors(t) / 255) ** 2.2  # glTF's colours are linear
    write_glb(path, vertices, t.faces, np.asarray(t.weights), t.parts, t.parents, joints, colors)
