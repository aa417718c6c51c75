"""Training losses: each a plain function of tensors."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss


def heatmap_loss(predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Half the squared error summed over pixels, weighted per joint, over the number of visible joints.

    Args:
        predicted, target: [B,K,h,w].
        weight: [B,K], 0 for joints that do not count (animals3d pose/utils/loss.py:15-31).
    """
    per_joint = 0.5 * (predicted - target).square().sum((-1, -2))
    return (per_joint * weight).sum() / (weight > 0).sum().clamp_min(1)


def keypoint_loss(
    predicted: torch.Tensor, target: torch.Tensor, confidence: torch.Tensor, prob: torch.Tensor
) -> torch.Tensor:
    """Reprojection loss of the reference (animals3d network.py:369-379, 510-517).

    For each image and hypothesis the confidence-weighted mean squared distance over joints, normalised by the mean
    confidence; expected under the hypothesis probabilities; mean over images.

    Args:
        predicted: [B,H,K,2]; target: [B,K,2]; confidence: [B,K] >= 0; prob: [B,H].
    """
    error = (predicted - target[:, None]).square().sum(-1)  # [B,H,K]
    per_image = (error * confidence[:, None]).mean(-1) / (confidence.mean(-1) + 1e-4)[:, None]
    return (per_image * prob).sum(1).mean()


def detector_loss(output: torch.Tensor, target: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Penalty-reduced focal loss on centres plus L1 on size and offset at centres (Zhou et al. 2019, eq. 1-3).

    Args:
        output: [B,5,h,w] of `Detector`.
        target: [B,1,h,w] Gaussian centres with peak exactly 1.
        size: [B,4,h,w] log width, log height, offset x, offset y; read where the target is 1.
    """
    logits, centre = output[:, :1], target.eq(1).float()
    p = logits.sigmoid()
    hard = binary_cross_entropy_with_logits(logits, centre, reduction="none")
    weight = centre * (1 - p).square() + (1 - centre) * (1 - target).pow(4) * p.square()
    count = centre.sum().clamp_min(1)
    focal = (weight.detach() * hard).sum() / count
    fields = smooth_l1_loss(output[:, 1:], size, beta=0.1, reduction="none").sum(1, keepdim=True)
    return focal + (fields * centre).sum() / count
