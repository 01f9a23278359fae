"""The YOLOv5 network, versions 6 and 7.

This is our own code, written from the published architecture: the checkpoint's yaml lists layers
`[from, number, module, args]`, and two multiples scale their depths and widths.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from deployments.segmenter.checkpoint import Checkpoint, CheckpointRefused


class Conv(nn.Module):
    """Convolution, batch normalisation, SiLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)  # until it is fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.bn(self.conv(x)), inplace=not self.training)


class Bottleneck(nn.Module):
    """Two convolutions, with a shortcut around them if the shapes allow it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(outputs * expansion)
        self.cv1 = Conv(inputs, hidden)
        self.cv2 = Conv(hidden, outputs, 3, groups=groups)
        self.shortcut = shortcut and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """A cross-stage partial block: half of the channels bypass the bottlenecks."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        number: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(outputs * expansion)
        self.cv1 = Conv(inputs, hidden)
        self.cv2 = Conv(inputs, hidden)
        self.cv3 = Conv(2 * hidden, outputs)
        self.m = nn.Sequential(
            *(Bottleneck(hidden, hidden, shortcut, groups, 1.0) for _ in range(number))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPP(nn.Module):
    """Spatial pyramid pooling: maxima over windows of several sizes, side by side."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = inputs // 2
        self.cv1 = Conv(inputs, hidden)
        self.cv2 = Conv(hidden * (len(kernels) + 1), outputs)
        self.kernels = tuple(kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cv1(x)
        pooled = [nn.functional.max_pool2d(x, kernel, 1, kernel // 2) for kernel in self.kernels]
        return self.cv2(torch.cat((x, *pooled), 1))


class SPPF(nn.Module):
    """SPP's result from three small windows in a row: two windows of 5 cover 9, three cover 13."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = inputs // 2
        self.cv1 = Conv(inputs, hidden)
        self.cv2 = Conv(hidden * 4, outputs)
        self.kernel = kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = [self.cv1(x)]
        for _ in range(3):
            pooled.append(nn.functional.max_pool2d(pooled[-1], self.kernel, 1, self.kernel // 2))
        return self.cv2(torch.cat(pooled, 1))


class Concat(nn.Module):
    """The outputs of several layers, concatenated along the channels."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, xs: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(xs, self.dimension)


class Detect(nn.Module):
    """One 1 x 1 convolution for each head: 5 + classes numbers for each anchor and cell."""

    def __init__(
        self, inputs: list[int], classes: int, anchors: torch.Tensor, stride: list[int]
    ) -> None:
        super().__init__()
        self.stride = stride
        self.anchors: torch.Tensor
        self.m = nn.ModuleList(nn.Conv2d(n, anchors.shape[1] * (5 + classes), 1) for n in inputs)
        self.register_buffer("anchors", anchors / torch.tensor(stride).view(-1, 1, 1))

    def forward(self, xs: list[torch.Tensor]) -> torch.Tensor:
        """Return float32 `[n, anchors, 5 + classes]`, see `YoloV5.forward`."""
        heads = zip(xs, self.m, self.stride, self.anchors.float(), strict=True)
        # bfloat16 has 8 significant bits, too few for a coordinate of up to 1280 pixels.
        return torch.cat([decode_head(m(x).float(), a * s, s) for x, m, s, a in heads], 1)


def decode_head(logits: torch.Tensor, anchors: torch.Tensor, stride: int) -> torch.Tensor:
    """Turn one head's output into boxes, as YOLOv5 does since version 2.

    xy = (2 sigmoid - 0.5 + cell) stride, wh = (2 sigmoid)^2 anchor.

    Args:
        logits: float32 `[n, a * (5 + classes), h, w]`.
        anchors: float32 `[a, 2]`, width and height in input pixels.
        stride: side of a cell, input pixels.

    Returns:
        float32 `[n, a * h * w, 5 + classes]`: centre x, y, width and height in input pixels,
        objectness, probability of each class.
    """
    n, channels, height, width = logits.shape
    a = len(anchors)
    y = logits.view(n, a, channels // a, height, width).permute(0, 1, 3, 4, 2).sigmoid()
    rows = torch.arange(height, device=logits.device, dtype=torch.float32)
    columns = torch.arange(width, device=logits.device, dtype=torch.float32)
    cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    xy = (y[..., :2] * 2 - 0.5 + cells) * stride
    wh = (y[..., 2:4] * 2) ** 2 * anchors.view(1, a, 1, 1, 2)
    return torch.cat((xy, wh, y[..., 4:]), -1).view(n, a * height * width, channels // a)


class YoloV5(nn.Module):
    """The network that a checkpoint describes.

    Args:
        architecture: the checkpoint's yaml.
        anchors: float32 `[heads, anchors of a head, 2]`, pixels.
        stride: side of a cell of each head, pixels.

    Raises:
        CheckpointRefused: the yaml names a module or an activation that is not supported.
    """

    def __init__(
        self, architecture: dict[str, Any], anchors: torch.Tensor, stride: list[int]
    ) -> None:
        super().__init__()
        if architecture.get("activation", "nn.SiLU()") != "nn.SiLU()":
            raise CheckpointRefused(
                f"The model's activation is {architecture['activation']}; only SiLU is supported."
            )
        self.stride = max(stride)
        self.sources, layers = _layers(architecture, anchors, stride)
        self.spent = _spent(self.sources)
        self.model = nn.ModuleList(layers)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Predict an object for each anchor.

        Args:
            batch: RGB `[n, 3, h, w]`, uint8 or floating point between 0 and 1; h and w are
                multiples of `stride`.

        Returns:
            float32 `[n, anchors, 5 + classes]`: centre x, y, width and height in pixels of the
            batch, objectness, probability of each class.
        """
        dtype = next(self.parameters()).dtype
        x = batch.to(dtype) / 255 if batch.dtype == torch.uint8 else batch.to(dtype)
        outputs = {-1: x}
        for index, (layer, sources) in enumerate(zip(self.model, self.sources, strict=True)):
            inputs = [outputs[source] for source in sources]
            x = layer(inputs if isinstance(layer, Concat | Detect) else inputs[0])
            outputs[index] = x
            for source in self.spent[index]:
                del outputs[source]
        return x


def _spent(sources: list[list[int]]) -> list[list[int]]:
    """Return, for each layer, the outputs that no later layer needs, and that can be freed."""
    last_use = {source: index for index, used in enumerate(sources) for source in used}
    return [[source for source, last in last_use.items() if last == i] for i in range(len(sources))]


def _layers(
    architecture: dict[str, Any], anchors: torch.Tensor, stride: list[int]
) -> tuple[list[list[int]], list[nn.Module]]:
    """Build the layers of a yaml; return the sources of each layer's input, and the layers."""
    classes = architecture["nc"]
    channels = [architecture.get("ch", 3)]  # of the input, then of each layer
    sources, layers = [], []
    entries = architecture["backbone"] + architecture["head"]
    for index, (source, number, name, args) in enumerate(entries):
        name = name.removeprefix("nn.").removeprefix("models.common.")
        relative = [source] if isinstance(source, int) else source
        absolute = [index + s if s < 0 else s for s in relative]
        inputs = [channels[s + 1] for s in absolute]
        number = max(round(number * architecture["depth_multiple"]), 1) if number > 1 else number
        if name in BLOCKS:
            outputs = _width(args[0], architecture["width_multiple"], anchors.shape[1], classes)
            layer = _block(name, inputs[0], outputs, number, [_value(a) for a in args[1:]])
        elif name == "Upsample":
            layer, outputs = nn.Upsample(*(_value(a) for a in args)), inputs[0]
        elif name == "Concat":
            layer, outputs = Concat(*args), sum(inputs)
        elif name == "Detect":
            layer, outputs = Detect(inputs, classes, anchors, stride), 0
        else:
            known = ", ".join([*BLOCKS, "Upsample", "Concat", "Detect"])
            raise CheckpointRefused(
                f"Layer {index} of the model is a {name!r}, which is not supported. Supported are "
                f"{known}: the modules of YOLOv5's detection models, versions 6 and 7."
            )
        sources.append(absolute)
        layers.append(layer)
        channels.append(outputs)
    return sources, layers


BLOCKS = {"Conv": Conv, "Bottleneck": Bottleneck, "C3": C3, "SPP": SPP, "SPPF": SPPF}


def _block(name: str, inputs: int, outputs: int, number: int, args: list[Any]) -> nn.Module:
    if name == "C3":
        return C3(inputs, outputs, number, *args)
    blocks = [BLOCKS[name](inputs, outputs, *args) for _ in range(number)]
    return blocks[0] if number == 1 else nn.Sequential(*blocks)


def _width(channels: int, multiple: float, anchors: int, classes: int) -> int:
    # YOLOv5 takes a layer with exactly this many channels for an output, and doesn't scale it.
    if channels == anchors * (classes + 5):
        return channels
    return math.ceil(channels * multiple / 8) * 8


def _value(argument: Any) -> Any:
    """Return an argument of the yaml, which writes some constants as words."""
    words = {"None": None, "True": True, "False": False}
    return words.get(argument, argument) if isinstance(argument, str) else argument


def load_network(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> YoloV5:
    """Build the checkpoint's network, ready for inference.

    Raises:
        CheckpointRefused: a module is not supported, or the weights don't fit the architecture.
    """
    try:
        network = YoloV5(checkpoint.architecture, checkpoint.anchors, checkpoint.stride)
        network.load_state_dict(checkpoint.state)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointRefused(
            f"The checkpoint's weights and architecture don't fit together: {error}"
        ) from error
    fuse(network.eval()).requires_grad_(False)
    # Convolutions are faster on channels_last tensors, on CPUs and on tensor cores.
    network.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def fuse(network: nn.Module) -> nn.Module:
    """Fold every batch normalisation into the convolution before it, in place.

    Batch normalisation at inference is y = (x - mean) gamma / sqrt(var + eps) + beta: a factor
    and an offset for each channel, which the convolution's weights and bias can absorb.
    """
    for module in network.modules():
        if isinstance(module, Conv) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = _fused(module.conv, module.bn)
            module.bn = nn.Identity()
    return network


def _fused(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    assert bn.running_mean is not None  # it keeps statistics
    assert bn.running_var is not None
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    conv.weight = nn.Parameter((conv.weight * factor.view(-1, 1, 1, 1)).detach())
    conv.bias = nn.Parameter((bn.bias - bn.running_mean * factor).detach())
    return conv
