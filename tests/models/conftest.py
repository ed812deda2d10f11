"""What the model tests share: the reference states, and small models that build in milliseconds."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dear_core.models import DEAR, FrozenTower, Side4Video, VideoMamba, random_tower

FOLDER = Path(__file__).parent.parent / "data_parity"
CLASSES = 5


@dataclass(frozen=True)
class Reference:
    """One parity file: its configuration and its tensors, by their first name part."""

    config: dict
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)
        }


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Reference]:
    def read(name: str) -> Reference:
        path = FOLDER / f"{name}.safetensors"
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        return Reference(json.loads(metadata.get("config", "{}")), load_file(path))

    return read


@pytest.fixture
def tower() -> FrozenTower:
    return random_tower(width=64, layers=2, heads=2, patch_size=8, image_size=24, seed=3)


@pytest.fixture
def make_side() -> Callable[[], Side4Video]:
    def make() -> Side4Video:
        return Side4Video(tower_width=64, tower_layers=2, patch_size=8, image_size=24, num_frames=3, dim=64)

    return make


@pytest.fixture
def make_mamba() -> Callable[[], VideoMamba]:
    def make() -> VideoMamba:
        return VideoMamba(image_size=24, patch_size=8, num_frames=3, embed_dim=32, depth=2)

    return make


@pytest.fixture
def make_dear(tower, make_side, make_mamba) -> Callable[..., DEAR]:
    """A DEAR from branch keys, whose encoder is the part after the colon; options go to DEAR."""

    def make(*keys: str, **options) -> DEAR:
        torch.manual_seed(0)
        makers = {"side4video": make_side, "videomamba": make_mamba}
        branches = {key: makers[key.split(":")[1]]() for key in keys}
        return DEAR(tower=tower, branches=branches, num_classes=CLASSES, **options)

    return make


@pytest.fixture
def make_clip() -> Callable[..., dict[str, Tensor]]:
    """Random clips {"rgb": [B,3,3,24,24], "depth": [B,1,3,24,24]}, those that are asked for."""

    def make(*modalities: str, batch: int = 2) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return {
            name: torch.randn(batch, 1 if name == "depth" else 3, 3, 24, 24, generator=generator)
            for name in modalities
        }

    return make


@pytest.fixture(scope="session")
def assert_close_to_peak() -> Callable[[Tensor, Tensor, float], None]:
    """Differences are measured against the largest expected value.

    Where all expected values are below 1e-6 they are noise (the gradient of a bias in front of a
    BatchNorm is zero in exact arithmetic and 1e-8 in float32), and 1e-3 takes their place.
    """

    def check(got: Tensor, want: Tensor, tolerance: float) -> None:
        assert got.shape == want.shape
        peak = want.abs().max().item()
        error = (got - want).abs().max().item() / (peak if peak > 1e-6 else 1e-3)
        assert error < tolerance, f"relative error {error:.2e} is above {tolerance:.0e}"

    return check
