"""AdamW (paper section 3) over the trainable parameters, and its learning rate over the steps."""

from __future__ import annotations

import math

import torch
from torch import nn

# Mamba's state matrix and every table of positions or tokens are not decayed (VideoMamba's
# `no_weight_decay`, Mamba's `_no_weight_decay`); nor are norms, biases, gates and stream weights, which
# have at most one dimension, but for the sigmoid gate's matrix.
_NO_DECAY = (
    "A_log",
    "A_b_log",
    "cls_token",
    "pos_embed",
    "temporal_pos_embedding",
    "side_spatial_position_embeddings",
    "gate.linear.weight",
)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups, decayed and not; frozen parameters are in neither."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim <= 1 or name.endswith(_NO_DECAY)
            (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas)


def lr_scale(step: int, total: int, warmup: int) -> float:
    """Linear from near zero over ``warmup`` steps, then a half cosine to zero at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
