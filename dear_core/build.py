"""The only composer: a ``RunConfig`` becomes data sets, a model and a job for ``fit``.

Everything that can be wrong with a config, a folder or an annotation is found here, before training.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from dear_core import distributed, starting_weights
from dear_core.config import DataConfig, DepthStoreConfig, RunConfig
from dear_core.data import formats
from dear_core.data.batches import EpochBatches, collate
from dear_core.data.dataset import ClipDataset, Views
from dear_core.data.frames import CachedSource, FileSource, FrameSource, Media, Progress
from dear_core.data.manifest import Manifest
from dear_core.data.mixing import Mixing
from dear_core.data.sampling import FrameSampler
from dear_core.data.transforms import ClipTransform
from dear_core.depth.store import DepthStore
from dear_core.errors import InputError
from dear_core.models import clip, clip_towers, flops
from dear_core.models.dear import DEAR
from dear_core.models.side4video import Side4Video
from dear_core.models.videomamba import VideoMamba
from dear_core.models.weight_files import WeightsError
from dear_core.training.loop import Job


@functools.lru_cache(maxsize=4)
def manifest(data: DataConfig) -> Manifest:
    """The data set's annotations, read once a process."""
    return formats.read(data)


def resolve(config: RunConfig) -> RunConfig:
    """Fill in what the files are, so that the run's key says what it was trained on and started from.

    That is ``data.identity``, what made the depth store, and ``pretrained_identity`` of each part of the
    model that starts from a weights file.

    Raises:
        InputError: the data set, its depth store or a weights file cannot be used, or is not the one the
            config names.
    """
    _transform(config.data, train=True)
    found = manifest(config.data)
    found.require_files()
    identity = found.identity()
    if config.data.identity not in (None, identity):
        raise InputError(
            f"data.identity: the config was made for data {config.data.identity}, but {config.data.root} "
            f"holds {identity}; point data.root at the original data, or leave data.identity out"
        )
    if config.model.fusion.combine == "mean_prob" and len(found.heads) > 1:
        raise InputError(
            f"model.fusion.combine: mean_prob needs one set of probabilities, the data has "
            f"{len(found.heads)} "
            f"({', '.join(found.heads)}); choose mean"
        )
    values = {"data.identity": identity, **starting_weights.identities(config)}
    if reads_depth(config):
        info = depth_store(config.data, found).info
        values |= {f"data.depth_store.{name}": getattr(info, name) for name in DepthStoreConfig.model_fields}
    return config.replace(values)


def reads_depth(config: RunConfig) -> bool:
    """Whether the run needs a depth store."""
    return "depth" in config.model.modalities and config.data.depth != "constant"


def dataset(
    config: RunConfig,
    found: Manifest,
    split: str,
    progress: Progress | None = None,
    *,
    train: bool | None = None,
) -> ClipDataset:
    """One split, each modality from its files or from the frame cache.

    ``train`` says whether it is read with augmentation; the train split is if nothing is said.

    Raises:
        InputError: the data set has no such split, or a file of it is missing.
    """
    data, train = config.data, split == "train" if train is None else train
    if split not in found.splits:
        raise InputError(f"{found.root}: has no {split} split; it has {', '.join(found.splits)}")
    clips = found.splits[split]
    sources: dict[str, FrameSource] = {}
    for modality in config.model.modalities:
        if modality == "depth" and not reads_depth(config):
            continue
        media = [Media(one.path, one.span, found.frame_pattern, one.frames) for one in clips]
        if modality == "depth":
            store = depth_store(data, found, (split,))
            media = [Media(store.path(one.source), one.span) for one in clips]
        channels = 1 if modality == "depth" else 3
        if data.cache_dir is None:
            sources[modality] = FileSource(media, channels)
        else:
            whole = FileSource(media, channels, data.short_side)
            sources[modality] = CachedSource(whole, Path(data.cache_dir), f"{modality}-{split}", progress)
    return ClipDataset(
        sources,
        [one.labels for one in clips],
        _transform(data, train),
        FrameSampler(data.sampling, data.num_frames, data.stride, data.dense_window),
        seed=config.train.seed,
        repeats=data.repeats if train else 1,
        flip_targets=found.flip_targets() if data.flip and train else None,
        depth=data.depth,
        views=Views(data.test_clips, data.test_crops),
    )


def _transform(data: DataConfig, train: bool) -> ClipTransform:
    try:
        return ClipTransform(
            crop_size=data.crop_size,
            short_side=data.short_side,
            train=train,
            scale=data.train_scale,
            colour_jitter=data.colour_jitter,
            rand_augment=data.rand_augment,
        )
    except ValueError as error:
        raise InputError(f"data.rand_augment: {error}") from None


def loader(config: RunConfig, clips: ClipDataset, *, train: bool) -> DataLoader:
    """Batches of this worker's share of the clips."""
    world, batch_size = distributed.world(), config.train.batch_size
    if train and batch_size % world:
        raise InputError(
            f"train.batch_size {batch_size} cannot be shared by {world} workers; "
            f"make it a multiple of {world}"
        )
    batches = EpochBatches(
        len(clips),
        batch_size if train else config.train.eval_batch_size,
        shuffle=train,
        seed=config.train.seed,
        rank=distributed.rank(),
        world=world,
    )
    return DataLoader(
        clips,
        batch_sampler=batches,
        num_workers=config.data.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=config.data.workers > 0 and not train,
    )


def tower(config: RunConfig) -> clip.FrozenTower | None:
    """The frozen ViT, or None where no branch reads it."""
    if not config.model.uses("side4video"):
        return None
    t, size = config.model.tower, config.data.crop_size
    if t.name == "random":
        return clip_towers.random_tower(
            width=t.width,
            layers=t.layers,
            heads=t.heads,
            patch_size=t.patch_size,
            image_size=size,
            seed=t.seed,
            quick_gelu=t.quick_gelu is not False,
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(t.seed)  # only weights that no file gives are drawn
            frozen = clip_towers.build_tower(
                t.name, pretrained=t.pretrained, image_size=size, quick_gelu=t.quick_gelu
            )
    except WeightsError as error:
        raise starting_weights.refused("model.tower.pretrained", t.pretrained, error) from None
    except ValueError as error:
        raise InputError(f"model.tower: {error}") from None
    if t.pretrained is not None:
        starting_weights.report("model.tower.pretrained", t.pretrained, frozen, frozen.load_report)
    return frozen


def model(config: RunConfig, num_classes: int) -> DEAR:
    """The network of one run, its trainable weights drawn from ``train.seed``.

    ``num_classes`` counts the classes of all heads, whose scores stand one after the other.
    """
    frozen = tower(config)
    fusion = config.model.fusion
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        try:
            network = DEAR(
                tower=frozen,
                branches={str(b): _branch(config, b.encoder, frozen) for b in config.model.branches},
                num_classes=num_classes,
                **fusion.model_dump(),
            )
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"model: {error}") from None
    if frozen is not None and config.train.precision == "bf16":
        frozen.to(torch.bfloat16)  # after the branches have compared their files with its weights
    return network


def job(config: RunConfig, progress: Progress | None = None) -> Job:
    """All that ``fit`` needs; ``config`` comes from :func:`resolve`."""
    starting_weights.check_at_hand(config)
    data, found = config.data, manifest(config.data)
    network = model(config, found.num_classes)
    return Job(
        config=config,
        model=network,
        train=loader(config, dataset(config, found, "train", progress), train=True),
        validation=loader(config, dataset(config, found, "validation", progress), train=False),
        classes=found.heads,
        tower_hash=clip.tower_hash(network.tower) if network.tower is not None else None,
        mix=Mixing(mixup=data.mixup, cutmix=data.cutmix) if data.mixup or data.cutmix else None,
    )


def clip_shapes(data: DataConfig, modalities: tuple[str, ...]) -> dict[str, tuple[int, int, int, int]]:
    """(C,T,H,W) of one clip by modality."""
    size = data.crop_size
    return {m: (1 if m == "depth" else 3, data.num_frames, size, size) for m in modalities}


def cost(config: RunConfig, network: DEAR) -> dict[str, float]:
    """GFLOPs a clip (2 a multiply-add) and parameters, total and trainable."""
    total, trainable = flops.parameters(network)
    counted = flops.count(network, clip_shapes(config.data, config.model.modalities))
    return {
        "gflops": round(counted.total_flops / 1e9, 4),
        "parameters": total,
        "trainable_parameters": trainable,
    }


def _branch(config: RunConfig, encoder: str, frozen: clip.FrozenTower | None) -> nn.Module:
    data, parts = config.data, config.model
    if encoder == "side4video":
        assert frozen is not None
        side = Side4Video(
            tower_width=frozen.width,
            tower_layers=frozen.layers,
            patch_size=frozen.patch_size,
            image_size=data.crop_size,
            num_frames=data.num_frames,
            dim=parts.side4video.dim,
            drop_path=parts.side4video.drop_path,
            checkpointing=config.train.gradient_checkpointing,
        )
        starting_weights.start_side4video(side, parts.side4video.pretrained, frozen)
        return side
    mamba = VideoMamba(
        image_size=data.crop_size,
        patch_size=parts.videomamba.patch_size,
        num_frames=data.num_frames,
        embed_dim=parts.videomamba.embed_dim,
        depth=parts.videomamba.depth,
        drop_path=parts.videomamba.drop_path,
        checkpointing=config.train.gradient_checkpointing,
    )
    starting_weights.start_videomamba(mamba, parts.videomamba.pretrained)
    return mamba


def depth_store(
    data: DataConfig, found: Manifest, splits: tuple[str, ...] = ("train", "validation")
) -> DepthStore:
    """The depth store of a data set.

    Raises:
        InputError: there is none, it was not made as the config says, or it lacks a source of the splits.
    """
    root = Path(data.depth_root) if data.depth_root else Path(data.root) / "depth"
    try:
        store = DepthStore.open(root)
    except ValueError as error:
        raise InputError(f"data.depth_root: {error}") from None
    differences = store.info.differences(data.depth_store.model_dump())
    if differences is not None:
        raise InputError(f"data.depth_store: the depth store {root} {differences}")
    have = store.ids()
    missing = [source for source in found.sources(splits) if source not in have]
    if missing:
        raise InputError(
            f"data.depth_root: {root.absolute()} has no depth for {len(missing)} videos, the first is "
            f"{missing[0]}; estimate them with ray_jobs/depth.py"
        )
    return store
