"""Depth networks with random weights, small enough to run in a test, saved as transformers saves them."""

from pathlib import Path

import torch
from transformers import BitConfig, DPTConfig, DPTForDepthEstimation, DPTImageProcessor, PreTrainedModel


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that depth varies, and a depth that the last ReLU lets through."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_uniform_(parameter)
    biases = [layer.bias for layer in model.head.modules() if isinstance(layer, torch.nn.Conv2d)]
    torch.nn.init.constant_(biases[-1], 50.0)
    return model.eval()


def dpt_hybrid(side: int) -> PreTrainedModel:
    """DPT with a convolutional backbone, like dpt-hybrid-midas, that sees frames as squares of ``side``."""
    bit = BitConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        num_groups=4,
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=["stage1", "stage2", "stage3"],
    )
    config = DPTConfig(
        is_hybrid=True,
        backbone_config=bit.to_dict(),
        backbone_featmap_shape=[1, 64, side // 16, side // 16],
        image_size=side,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 32, 24, 24],
        reassemble_factors=[1, 1, 1, 0.5],
        fusion_hidden_size=16,
    )
    return lively(DPTForDepthEstimation(config))


def save_dpt(model: PreTrainedModel, folder: Path, side: int) -> Path:
    """The model and its preprocessing; returns the folder."""
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": side, "width": side}, resample=2).save_pretrained(folder)
    return folder
