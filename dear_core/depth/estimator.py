"""Relative inverse depth of frames (large = near), by the models of :data:`MODELS` through transformers.

Weights come from the hub's cache, from the hub, or from a local folder in transformers' form. They are known
by the hash of their content, so that a depth store can tell what made it. Loading is strict: a network with a
parameter that no file gives is refused, except those that are never run (see ``_NEVER_RUN``).

Preprocessing is transformers' own image processor on tensors, with the values in the folder's
``preprocessor_config.json``; a folder without one gets those that were published with the model. DPT sees
every frame as a 384×384 square, as transformers' DPT takes nothing else; Depth Anything keeps the aspect.

Nothing here decodes, writes or normalises: values are as the network gives them, resized.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dear_core.errors import InputError

if TYPE_CHECKING:
    from transformers import DPTImageProcessor, PreTrainedModel

# Published preprocessing. DPT: huggingface/transformers, models/dpt/convert_dpt_to_pytorch.py and
# convert_dpt_hybrid_to_pytorch.py write DPTImageProcessor(size=384), whose defaults then were bilinear, not
# keeping the aspect, multiples of 1, mean and std 0.5. Depth Anything V2: convert_depth_anything_to_hf.py.
_DPT = {
    "size": {"height": 384, "width": 384},
    "keep_aspect_ratio": False,
    "ensure_multiple_of": 1,
    "resample": 2,  # PIL's bilinear
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_DEPTH_ANYTHING = {
    "size": {"height": 518, "width": 518},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
    "resample": 3,  # PIL's bicubic
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


@dataclass(frozen=True)
class _Kind:
    """What the configs of a name's weights say, and how its frames are prepared."""

    model_type: str
    preprocessing: dict[str, Any]


_Precision = Literal["fp32", "bf16"]

MODELS: dict[str, _Kind] = {
    "Intel/dpt-hybrid-midas": _Kind("dpt", _DPT),
    "Intel/dpt-large": _Kind("dpt", _DPT),
    "depth-anything/Depth-Anything-V2-Small-hf": _Kind("depth_anything", _DEPTH_ANYTHING),
    "depth-anything/Depth-Anything-V2-Base-hf": _Kind("depth_anything", _DEPTH_ANYTHING),
    "depth-anything/Depth-Anything-V2-Large-hf": _Kind("depth_anything", _DEPTH_ANYTHING),
}

# The deepest fusion layer has nothing to add to, so this part of it never runs; Intel's files lack it.
_NEVER_RUN = "neck.fusion_stage.layers.0.residual_layer1."
_FILES = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")


@dataclass(frozen=True)
class Weights:
    """A folder with a model of a known name, and what it holds."""

    name: str
    folder: Path
    hash: str
    """16 hex digits of the SHA-256 of the weight files' content."""


def find_weights(name: str, folder: Path | None = None) -> Weights:
    """The weights of ``name``: in ``folder``, or in the hub's cache, where they are fetched to if need be.

    Raises:
        InputError: unknown name, incomplete folder, a model of another kind, or the hub cannot be reached.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"depth model {name}: not known; {hint}known are {', '.join(MODELS)}")
    folder = _from_hub(name) if folder is None else folder
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json; give a folder as `hf download {name}` makes it")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config.get("model_type")
    except (ValueError, AttributeError):
        raise InputError(f"{folder / 'config.json'}: not readable as a model's config") from None
    if model_type != MODELS[name].model_type or config.get("depth_estimation_type", "relative") != "relative":
        raise InputError(
            f"{folder}: holds a {config.get('depth_estimation_type', '')} {model_type} model, which "
            f"{name} is not; give its own weights".replace("  ", " ")
        )
    return Weights(name, folder, _hash(_weight_files(folder)))


class DepthEstimator:
    """A loaded network; make one with :meth:`load`. Not for use by several threads at once."""

    def __init__(
        self,
        weights: Weights,
        network: PreTrainedModel,
        processor: DPTImageProcessor,
        device: torch.device,
        precision: _Precision,
    ) -> None:
        self.name, self.weights_hash = weights.name, weights.hash
        self.device, self.precision = device, precision
        self._network, self._processor = network, processor
        self.batch_shape = functools.lru_cache(maxsize=None)(self._batch_shape)

    @classmethod
    def load(
        cls,
        name: str,
        weights: Path | None = None,
        device: str | torch.device = "cpu",
        precision: _Precision = "fp32",
    ) -> DepthEstimator:
        """The model ``name`` with the weights in the folder ``weights``, or the hub's; see ``find_weights``.

        Raises:
            InputError: also for weights that do not load or lack a parameter.
        """
        found = find_weights(name, weights)
        network = _load_network(found).eval().requires_grad_(False).to(device)
        if precision == "bf16":
            _keep_last_layer_fp32(network)
        return cls(found, network, _load_processor(found), torch.device(device), precision)

    def _batch_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network sees for frames of this size.

        Frames of different videos for which it is the same can share a batch.
        """
        blank = np.zeros((1, height, width, 3), np.uint8)
        return tuple(self.prepare(blank).shape[-2:])

    def prepare(self, frames_BHWC: np.ndarray | Tensor) -> Tensor:
        """The network's input (B,3,H',W') for uint8 frames of one size, on the device."""
        frames_BCHW = torch.as_tensor(frames_BHWC).to(self.device).permute(0, 3, 1, 2)
        done = self._processor(images=frames_BCHW, input_data_format="channels_first", return_tensors="pt")
        return done["pixel_values"]

    @torch.no_grad()
    def infer(self, inputs_BCHW: Tensor) -> Tensor:
        """Inverse depth (B,h',w') float32 at the network's own size, from what ``prepare`` gives."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self._network(pixel_values=inputs_BCHW).predicted_depth.float()

    @staticmethod
    def resize(depth_BHW: Tensor, size: tuple[int, int]) -> Tensor:
        """Bicubic to (height, width), as transformers' ``post_process_depth_estimation`` has it."""
        return nn.functional.interpolate(
            depth_BHW[:, None], size=size, mode="bicubic", align_corners=False
        ).squeeze(1)

    def estimate(self, frames_BHWC: np.ndarray | Tensor, size: tuple[int, int]) -> Tensor:
        """Relative inverse depth (B,h,w) float32 of uint8 frames of one size, ``size`` being (h, w)."""
        return self.resize(self.infer(self.prepare(frames_BHWC)), size)


def _from_hub(name: str) -> Path:
    """The folder of ``name`` in the hub's cache, fetched where it is not yet there."""
    import huggingface_hub  # only where no folder is given

    try:
        for files in ("model*.safetensors*", "pytorch_model*.bin*"):
            wanted = ["config.json", "preprocessor_config.json", files]
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
            if any(folder.glob(files)):
                break
        return folder
    except Exception as error:  # connection, proxy, offline, rights: no narrower class is shared
        raise InputError(
            f"depth model {name}: not in the hub's cache, and the hub gave none ({type(error).__name__}); "
            f"run `hf download {name} --local-dir FOLDER` where there is a connection and give --weights "
            "FOLDER, or point HF_HOME at a cache that has it"
        ) from None


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads, which prefers safetensors."""
    for pattern in _FILES:
        if files := sorted(folder.glob(pattern)):
            return files
    raise InputError(f"{folder}: no weights; there should be model.safetensors or pytorch_model.bin")


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _load_network(weights: Weights) -> PreTrainedModel:
    import transformers  # seconds

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        network, report = transformers.AutoModelForDepthEstimation.from_pretrained(
            weights.folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # of transformers, safetensors, torch, pickle
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{weights.folder}: these weights do not load: {reason}") from None
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_NEVER_RUN))
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{weights.folder}: no weights for {missing[0]}{others}; give a complete file")
    return network


def _load_processor(weights: Weights) -> DPTImageProcessor:
    from transformers import DPTImageProcessor

    if not (weights.folder / "preprocessor_config.json").is_file():
        return DPTImageProcessor(**MODELS[weights.name].preprocessing)
    try:
        return DPTImageProcessor.from_pretrained(weights.folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{weights.folder / 'preprocessor_config.json'}: {error}") from None


class _Fp32(nn.Module):
    """A layer outside autocast."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


def _keep_last_layer_fp32(network: PreTrainedModel) -> None:
    """bf16 has 8 bits, as coarse as a grey level, so the layer that gives the depth stays exact."""
    *_, last = (name for name, layer in network.head.named_modules() if isinstance(layer, nn.Conv2d))
    network.head.set_submodule(last, _Fp32(network.head.get_submodule(last)))
