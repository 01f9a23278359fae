"""Networks that are measured for speed alone: random weights are as fast as trained ones.

YOLOv5s is the service's own code. The image tower of CLIP (Radford et al., 2021) is written here,
because the service takes it from transformers, and only torch may be installed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deployments.segmenter.checkpoint import Checkpoint
from deployments.segmenter.yolov5 import YoloV5, load_network

STRIDES = [8, 16, 32]
# In pixels, for the grid of each stride.
ANCHORS = [
    [(10, 13), (16, 30), (33, 23)],
    [(30, 61), (62, 45), (59, 119)],
    [(116, 90), (156, 198), (373, 326)],
]
CLASSES = 80
YOLOV5S: dict[str, Any] = {
    "nc": CLASSES,
    "depth_multiple": 0.33,
    "width_multiple": 0.5,
    "anchors": ANCHORS,
    # Where the input comes from, how many modules, which, and their arguments.
    "backbone": [
        [-1, 1, "Conv", [64, 6, 2, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, "C3", [128]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 6, "C3", [256]],
        [-1, 1, "Conv", [512, 3, 2]],
        [-1, 9, "C3", [512]],
        [-1, 1, "Conv", [1024, 3, 2]],
        [-1, 3, "C3", [1024]],
        [-1, 1, "SPPF", [1024, 5]],
    ],
    "head": [
        [-1, 1, "Conv", [512, 1, 1]],
        [-1, 1, "Upsample", ["None", 2, "nearest"]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 3, "C3", [512, False]],
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 1, "Upsample", ["None", 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "C3", [256, False]],
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, 14], 1, "Concat", [1]],
        [-1, 3, "C3", [512, False]],
        [-1, 1, "Conv", [512, 3, 2]],
        [[-1, 10], 1, "Concat", [1]],
        [-1, 3, "C3", [1024, False]],
        [[17, 20, 23], 1, "Detect", ["nc", "anchors"]],
    ],
}


def random_yolov5(width: float) -> Checkpoint:
    """Return a YOLOv5 with random weights whose output differs from photo to photo.

    Args:
        width: factor of its channels; 0.5 is YOLOv5s.
    """
    torch.manual_seed(0)
    anchors = torch.tensor(ANCHORS).float()
    architecture = YOLOV5S | {"width_multiple": width}
    network = YoloV5(architecture, anchors, STRIDES)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    names = [str(number) for number in range(CLASSES)]
    return Checkpoint(architecture, network.state_dict(), names, STRIDES, anchors)


def write_checkpoint(checkpoint: Checkpoint, file: Path) -> None:
    """Write a checkpoint for `read_checkpoint`: a tree of modules, here all of one class."""
    root: Any = nn.Module()
    for name, tensor in checkpoint.state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_buffer(last, tensor)
    root.yaml, root.names, root.stride = (
        checkpoint.architecture,
        checkpoint.names,
        checkpoint.stride,
    )
    torch.save({"model": root}, file)


def make_detector(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> YoloV5:
    """Return a network for uint8 `[n, 3, h, w]`, ready for inference."""
    return load_network(checkpoint, device, dtype)


class TowerShape(NamedTuple):
    """Sizes of a tower.

    Attributes:
        image_size, patch_size: sides, pixels.
        width: length of a token.
        layers, heads: numbers of layers, and of a layer's attention heads.
        hidden: width of the middle of an MLP.
        dimension: length of a vector.
        quick: whether the activation is x sigmoid(1.702 x), otherwise GELU itself.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    dimension: int
    quick: bool


VIT_B_32 = TowerShape(224, 32, 768, 12, 12, 3072, 512, quick=True)


def read_shape(folder: Path) -> TowerShape:
    """Read the sizes of an encoder in the format of transformers, e.g. `models/compact`."""
    config = json.loads((folder / "config.json").read_text())
    return TowerShape(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        dimension=config["projection_dim"],
        quick=config["hidden_act"] == "quick_gelu",
    )


class Layer(nn.Module):
    """Attention and an MLP, each after a normalisation and around a shortcut."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        width = shape.width
        self.heads, self.quick = shape.heads, shape.quick
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, shape.hidden), nn.Linear(shape.hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer_norm1(x)
        q, k, v = (
            project(y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out_proj(seen.transpose(1, 2).flatten(2))
        y = self.fc1(self.layer_norm2(x))
        y = y * torch.sigmoid(1.702 * y) if self.quick else nn.functional.gelu(y)
        return x + self.fc2(y)


class Tower(nn.Module):
    """CLIP's image tower: float `[n, 3, s, s]`, normalised, to `[n, dimension]`."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        width = shape.width
        places = (shape.image_size // shape.patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, shape.patch_size, shape.patch_size, bias=False)
        self.position_embedding = nn.Parameter(torch.randn(places, width))
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers = nn.Sequential(*(Layer(shape) for _ in range(shape.layers)))
        self.visual_projection = nn.Linear(width, shape.dimension, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.pre_layrnorm(torch.cat((first, patches), 1) + self.position_embedding)
        return self.visual_projection(self.post_layernorm(self.layers(x)[:, 0]))


def make_tower(shape: TowerShape, device: torch.device, dtype: torch.dtype) -> Tower:
    """Return a tower with random weights, ready for inference."""
    torch.manual_seed(0)
    return Tower(shape).eval().requires_grad_(False).to(device, dtype)


def operations(network: nn.Module, example: torch.Tensor) -> float:
    """Count the floating-point operations of a forward pass, a product and its sum as two."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(example)
    return counter.get_total_flops()


def write_tower(shape: TowerShape, folder: Path) -> None:
    """Write an image tower with random weights, for the service's own encoder to load."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.hidden,
        projection_dim=shape.dimension,
        hidden_act="quick_gelu" if shape.quick else "gelu",
    )
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
