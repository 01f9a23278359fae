"""Write models/compact: a small CLIP image tower with random weights, from a fixed seed.

It stands where a trained encoder will stand, so that the service runs without any model hub. It
tells a picture from others by its colours and its layout only; it has learnt nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from deployments.encoder import CLIP_MEAN, CLIP_STD

SEED = 20
FOLDER = Path(__file__).parent.parent / "models" / "compact"
CONFIG = CLIPVisionConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=112,
    patch_size=16,
    projection_dim=256,
)

CARD = f"""# compact

A CLIP image tower with random weights (seed {SEED}): it has learnt nothing.

It holds the place of the encoder that is to be trained for Inset, so that the service runs without
a download. It tells pictures apart by their colours and their layout: it finds a crop again that is
nearly one of a photo's chunks, and little else. Written by `scripts/make_random_encoder.py`; ours,
under Apache-2.0.
"""


def main() -> None:
    torch.manual_seed(SEED)
    model = CLIPVisionModelWithProjection(CONFIG).half()
    model.save_pretrained(FOLDER)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": CONFIG.image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": CONFIG.image_size, "width": CONFIG.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    (FOLDER / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")
    (FOLDER / "README.md").write_text(CARD)
    print(f"{FOLDER}: {sum(p.numel() for p in model.parameters()):,} random weights, seed {SEED}")


if __name__ == "__main__":
    main()
