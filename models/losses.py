"""Training losses: each a plain function of tensors."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def heatmap_loss(
    predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, count: torch.Tensor | None = None
) -> torch.Tensor:
    """Half the squared error summed over pixels, weighted per joint, over the number of visible joints.

    Args:
        predicted, target: [B,K,h,w].
        weight: [B,K], 0 for joints that do not count (animals3d pose/utils/loss.py:15-31).
        count: joints to divide by; None: those that count here. (Of a part of a batch, its part of the whole's.)
    """
    per_joint = 0.5 * (predicted - target).square().sum((-1, -2))
    count = (weight > 0).sum().clamp_min(1) if count is None else count.to(per_joint.dtype)
    return (per_joint * weight).sum() / count


def keypoint_loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    confidence: torch.Tensor,
    prob: torch.Tensor,
    robust: float = 0.0,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Reprojection loss of the reference (animals3d network.py:369-379, 510-517).

    For each image and hypothesis the confidence-weighted mean squared distance over joints, normalised by the mean
    confidence; expected under the hypothesis probabilities; mean over images.

    Args:
        predicted: [B,H,K,2]; target: [B,K,2]; confidence: [B,K] >= 0; prob: [B,H].
        robust: distance in the network's frame from which a joint's error counts linearly instead of squared
            (pseudo-Huber, Charbonnier et al. 1997); 0 squares every error, as the reference does.
        weight: [B] factor of each image's loss; None: all count alike, as in the reference.
    """
    error = (predicted - target[:, None]).square().sum(-1)  # [B,H,K]
    if robust:
        error = 2 * robust**2 * ((1 + error / robust**2).sqrt() - 1)
    per_image = (error * confidence[:, None]).mean(-1) / (confidence.mean(-1) + 1e-4)[:, None]
    expected = (per_image * prob).sum(1)
    return (expected if weight is None else expected * weight).mean()


def detector_loss(
    output: torch.Tensor,
    target: torch.Tensor,
    boxes: torch.Tensor,
    weight: torch.Tensor,
    count: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Penalty-reduced focal loss on centres (Zhou et al. 2019, eq. 1), and generalised IoU loss on boxes times 5.

    Args:
        output: [B,5,h,w] of `Detector`.
        target: [B,1,h,w] Gaussian centres with peak exactly 1.
        boxes: [B,4,h,w] x1, y1, x2, y2 in input pixels of the box a cell belongs to.
        weight: [B,h,w] of each cell's box; sums to 1 for each object (Liu et al. 2020 train a box from the whole
            middle of an object, which converges several times faster than from its centre cell).
        count: objects to divide by; None: those here.
    """
    logits, centre = output[:, :1], target.eq(1).float()
    p = logits.sigmoid()
    hard = binary_cross_entropy_with_logits(logits, centre, reduction="none")
    easing = centre * (1 - p).square() + (1 - centre) * (1 - target).pow(4) * p.square()
    count = centre.sum().clamp_min(1) if count is None else count.to(logits.dtype)
    focal = (easing.detach() * hard).sum() / count

    h, w = output.shape[-2:]
    middle = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy")).to(output) * 4 + 2
    sides = output[:, 1:].clamp(-2, 8).exp()
    predicted = torch.cat([middle - sides[:, :2], middle + sides[:, 2:]], 1)
    inside = weight > 0
    pairs = predicted.permute(0, 2, 3, 1)[inside], boxes.permute(0, 2, 3, 1)[inside]
    return focal, 5 * ((1 - giou(*pairs)) * weight[inside]).sum() / count


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU [N] of boxes [N,4] given as x1, y1, x2, y2 (Rezatofighi et al. 2019)."""
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0).prod(-1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - inter
    return inter / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)
