"""Tiny checkpoints of YOLOv5, saved as its training does."""

import copy
import sys
import types

import torch
from torch import nn

from deployments.segmenter.yolov5 import YoloV5


def tiny_architecture(heads=3, classes=7):
    """A YOLOv5 of a few thousand parameters, in the checkpoint's own words."""
    backbone = [
        [-1, 1, "Conv", [32, 6, 2, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 6, "C3", [64]],
    ]
    levels = [3]
    for _ in range(heads - 1):
        backbone += [[-1, 1, "Conv", [64, 3, 2]], [-1, 3, "C3", [64]]]
        levels.append(len(backbone) - 1)
    backbone.append([-1, 1, "SPPF", [64, 5]])
    levels[-1] = len(backbone) - 1
    head = [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, levels[-2]], 1, "Concat", [1]],
        [-1, 3, "C3", [64, False]],
    ]
    joined = len(backbone) + 2
    head.append([[*levels[:-2], joined, levels[-1]], 1, "Detect", ["nc", "anchors"]])
    return {
        "nc": classes,
        "ch": 3,
        "depth_multiple": 0.33,
        "width_multiple": 0.25,
        "backbone": backbone,
        "head": head,
        "anchors": [[4 * 2**h, 6 * 2**h, 8 * 2**h, 8 * 2**h] for h in range(1, heads + 1)],
    }


def tiny_network(heads=3, classes=7, seed=0):
    """Return the network with random weights and random normalisation statistics."""
    torch.manual_seed(seed)
    architecture = tiny_architecture(heads, classes)
    anchors = torch.tensor(architecture["anchors"]).float().view(heads, -1, 2)
    network = YoloV5(architecture, anchors, [8 * 2**h for h in range(heads)])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    # Numbers that float16 holds exactly.
    return network.half().float().eval(), architecture


FAKES = {"YoloV5": "models.yolo.DetectionModel", "Detect": "models.yolo.Detect"}


def as_yolov5_saves(module, classes):
    """Move a network's parts into classes that carry the names of YOLOv5's."""
    name = type(module).__name__
    if type(module).__module__ != "deployments.segmenter.yolov5":
        tree = type(module).__new__(type(module))
    else:
        package, _, name = FAKES.get(name, f"models.common.{name}").rpartition(".")
        if (package, name) not in classes:
            classes[package, name] = type(name, (nn.Module,), {"__module__": package})
        tree = classes[package, name]()
    tree.__dict__.update(module.__dict__)
    tree._modules = {k: as_yolov5_saves(child, classes) for k, child in module._modules.items()}
    return tree


def save_checkpoint(path, network, architecture, names=None, half=True, averaged=None):
    """Save as YOLOv5's training does: a pickled tree of `models.*` modules."""
    classes = {}

    def model(source):
        tree = as_yolov5_saves(copy.deepcopy(source), classes)
        tree.yaml = architecture
        tree.names = names or [f"thing {i}" for i in range(architecture["nc"])]
        tree.stride = torch.tensor([float(s) for s in source.model[-1].stride])
        return tree.half() if half else tree

    content = {"epoch": -1, "model": model(network), "ema": averaged and model(averaged)}
    modules = {"models": types.ModuleType("models")}
    for (package, name), cls in classes.items():
        modules.setdefault(package, types.ModuleType(package))
        setattr(modules[package], name, cls)
    sys.modules.update(modules)
    try:
        torch.save(content, path)
    finally:
        for name in modules:
            del sys.modules[name]
    return path
