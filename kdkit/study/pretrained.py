"""Published weights of torchvision's networks."""

import pickle
import re

import torch
from torch import Tensor

from ..fields import choose


def pretrained(name: str, classes: int = 1000) -> dict[str, Tensor]:
    """torchvision's IMAGENET1K_V1 weights for `load_state_dict` of `build(name, 3, 1000)`.

    name: resnet18_imagenet, resnet34_imagenet or resnet50_imagenet. They come from torch.hub's
    cache, or over the net once. ValueError for other names, for data of other than ImageNet's 1000
    `classes`, and where they cannot be had.
    """
    from torchvision.models import get_model_weights

    if classes != 1000:
        raise ValueError(
            f"{name}: torchvision's weights are for ImageNet's 1000 classes, the data has {classes}"
        )
    choose(
        name,
        [f"{base}_imagenet" for base in ("resnet18", "resnet34", "resnet50")],
        "network with ImageNet weights",
    )
    weights = get_model_weights(name.partition("_")[0])["IMAGENET1K_V1"]
    try:
        theirs = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as e:
        raise ValueError(
            f"torchvision's weights of {name} cannot be had ({' '.join(str(e).split())}); without "
            f"internet put {weights.url.rpartition('/')[2]} into {torch.hub.get_dir()}/checkpoints"
        ) from None
    ours = {r"^(conv|bn)1": r"parts.0.\1", r"^layer(\d)": r"parts.\1.blocks", "downsample": "down"}
    for old, new in ours.items():
        theirs = {re.sub(old, new, key): v for key, v in theirs.items()}
    return theirs
