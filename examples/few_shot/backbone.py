"""A vision-only model with a linear head: features frozen, or tuned along with the head by LoRA (`peft`).

The backbone is a folder or hub id of a vision transformer (DINOv2, CLIP, a LLaVA folder's own tower), or the teacher
of examples/small_vlm. Its view of an image is the class token beside the mean of the patches, as usual for such heads.

B batch, D width, C classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from examples.few_shot.task import Labelled, Task
from examples.small_vlm import parts, teacher

EXAM_BATCH = 32


@dataclass(frozen=True)
class Backbone:
    """`make` gives a fresh frozen model from pixels (B, 3, H, W) to features (B, D); `adapted` names its products."""

    name: str
    make: Callable[[], nn.Module]
    pixels: Callable[[bytes], torch.Tensor]
    adapted: str


@dataclass(frozen=True)
class HeadTuning:
    """The head's rate holds for features with mean 0 and deviation 1 over the images shown."""

    rank: int = 32
    head_rate: float = 1e-2
    lora_rate: float = 1e-4


class Features(nn.Module):
    """A vision transformer's view of an image, of one length whatever the family."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        hidden_BND = self.model(pixel_values=pixels_BCHW).last_hidden_state
        return torch.cat((hidden_BND[:, 0], hidden_BND[:, 1:].mean(1)), -1)


class Whole(nn.Module):
    """The network's view of a whole image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.model(pixels_BCHW)[1]


def from_transformers(name: str) -> Backbone:
    """A vision model; of a LLaVA model its tower."""
    settings, _ = ImageProcessingMixin.get_image_processor_dict(name)

    def make() -> nn.Module:
        if AutoConfig.from_pretrained(name).model_type == "llava":
            return Features(_tower_of(name))
        model = AutoModel.from_pretrained(name, dtype=torch.float32)
        return Features(getattr(model, "vision_model", model))

    def pixels(png: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(png)) as image:
            return as_published(image, settings)

    return Backbone(Path(name).name, make, pixels, r".*\.(q_proj|k_proj|v_proj|out_proj|query|key|value|dense|fc1|fc2)")


def as_published(image: Image.Image, settings: dict[str, Any]) -> torch.Tensor:
    """Pixels (3, H, W) as a preprocessor_config.json wants them: resized, cut from the middle, normalised.

    `transformers` can do it too, but wants torchvision for it.
    """
    size, crop = settings["size"], settings.get("crop_size")
    edge = size.get("shortest_edge")
    factor = edge / min(image.size) if edge else 1.0
    to = (size["width"], size["height"]) if not edge else (round(image.width * factor), round(image.height * factor))
    image = image.convert("RGB").resize(to, Image.Resampling(settings.get("resample", 3)))
    if crop and settings.get("do_center_crop", True):
        left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    pixels_HWC = np.asarray(image, dtype=np.float32) * settings.get("rescale_factor", 1 / 255)
    scaled_HWC = (pixels_HWC - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    return torch.from_numpy(scaled_HWC.astype(np.float32)).permute(2, 0, 1)


def _tower_of(name: str) -> nn.Module:
    from transformers import LlavaForConditionalGeneration

    whole = LlavaForConditionalGeneration.from_pretrained(name, dtype=torch.float32)
    return whole.model.vision_tower


def efficientnet_lite0(archives: Path, side: int) -> Backbone:
    """ImageNet's own small network, fetched if need be."""
    parts.fetch_teacher(archives)
    return efficientnet(parts.read_teacher_weights(archives), side)


def efficientnet(weights: dict[str, torch.Tensor], side: int) -> Backbone:

    def pixels(png: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(png)) as image:
            small = np.array(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        return torch.from_numpy(small).permute(2, 0, 1).float() / 255

    adapted = r".*\.(_expand_conv|_project_conv|_conv_head)"  # its filters of single channels are no products
    return Backbone("efficientnet-lite0", lambda: Whole(teacher.load(weights)), pixels, adapted)


class HeadMethod:
    """A backbone and a linear head; with `lora` the backbone learns too."""

    def __init__(self, backbone: Backbone, tuning: HeadTuning, *, lora: bool) -> None:
        self.backbone, self.tuning, self.lora = backbone, tuning, lora

    def tuned(self, task: Task, seed: int) -> float:
        torch.manual_seed(seed)
        model = self.backbone.make().eval().requires_grad_(False)
        number = {name: k for k, name in enumerate(task.names)}
        shown = self._pixels(task.shown)
        label = torch.tensor([number[one.name] for one in task.shown])
        with torch.no_grad():
            seen_ND = in_pieces(model, shown)
        scaled = Scaled(seen_ND.mean(0), seen_ND.std(0, correction=0))
        head = nn.Linear(seen_ND.shape[1], len(task.names))
        nn.init.zeros_(head.weight)
        groups = [{"params": list(head.parameters()), "lr": self.tuning.head_rate}]
        if self.lora:
            rank = self.tuning.rank
            model = inject_adapter_in_model(
                LoraConfig(r=rank, lora_alpha=32, target_modules=self.backbone.adapted), model
            )
            adapters = [p for p in model.parameters() if p.requires_grad]
            groups.append({"params": adapters, "lr": self.tuning.lora_rate})
        optimizer: Any = torch.optim.Adam(groups, betas=(0.9, 0.95))
        fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(task.batches))
        for batch in task.batches:
            features_BD = model(shown[batch]) if self.lora else seen_ND[batch]
            loss = F.cross_entropy(head(scaled(features_BD)), label[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            fall.step()
        with torch.no_grad():
            logits_BC = head(scaled(in_pieces(model, self._pixels(task.exam))))
        wanted = torch.tensor([number[one.name] for one in task.exam])
        return float((logits_BC.argmax(-1) == wanted).float().mean())

    def _pixels(self, images: list[Labelled]) -> torch.Tensor:
        return torch.stack([self.backbone.pixels(one.png) for one in images])


class Scaled:
    """Features brought to mean 0 and deviation 1, so that one rate of the head fits every backbone."""

    def __init__(self, mean_D: torch.Tensor, deviation_D: torch.Tensor) -> None:
        self.mean_D, self.deviation_D = mean_D, deviation_D + 1e-3 * deviation_D.mean() + 1e-6

    def __call__(self, features_BD: torch.Tensor) -> torch.Tensor:
        return (features_BD - self.mean_D) / self.deviation_D


def in_pieces(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(piece) for piece in pixels.split(EXAM_BATCH)])
