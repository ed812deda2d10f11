"""``fit``: train one run to its end, from nothing or from its newest checkpoint.

It is given the model and the loaders, and knows no launcher: under Ray Train or torchrun the process group
is already there, alone there is none. It reports once an epoch and keeps every figure in the run's folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dear_core import distributed
from dear_core.config import RunConfig
from dear_core.errors import InputError
from dear_core.runs import RunFolder
from dear_core.training import checkpoint, optim
from dear_core.training.evaluate import Bad, evaluate, to_device
from dear_core.training.heads import Heads
from dear_core.training.metrics import Scores

log = logging.getLogger(__name__)

Clip = dict[str, Tensor]
Row = dict[str, Any]
"""One epoch's figures by name, for example ``validation/top1``."""


@dataclass(frozen=True)
class Job:
    """All that ``fit`` needs of one run. ``model`` has ``trainable_state`` and ``load_trainable_state``."""

    config: RunConfig
    model: nn.Module
    train: DataLoader
    validation: DataLoader
    classes: dict[str, tuple[str, ...]]
    """Texts of the classes of every head."""
    tower_hash: str | None
    mix: Callable[[Clip, Tensor], tuple[Clip, Tensor]] | None = None
    """Mixup or CutMix of a training batch: {modality: (B,C,T,H,W)} and targets (B,K)."""


class NotFiniteError(RuntimeError):
    """The loss is no longer a number; the weights were not updated with it."""


class Trainer:
    def __init__(self, job: Job, folder: RunFolder) -> None:
        self.job, self.folder, self.heads = job, folder, Heads.of(job.classes)
        self.device = distributed.device()
        self.core = job.model.to(self.device)
        self.train_config = train = job.config.train
        self.optimizer = optim.adamw(
            self.core, lr=train.lr, weight_decay=train.weight_decay, betas=train.betas
        )
        self.epoch = self.step = 0
        self.best_top1, self.seconds = -1.0, 0.0
        self.scores: Scores | None = None
        self.bad = 0
        if not len(job.train):
            raise InputError(
                f"train.batch_size {train.batch_size} is larger than the training split; "
                "no step would be made, make it smaller"
            )
        self.steps_per_epoch = len(job.train)
        self.total_steps = train.epochs * self.steps_per_epoch
        self.warmup_steps = round(train.warmup_epochs * self.steps_per_epoch)

    def resume(self) -> None:
        """Continue from the newest checkpoint of this run, if there is one."""
        if not self.folder.last.is_file():
            self._forget_after(0)
            return
        state = checkpoint.read(self.folder.last)
        assert state.config.key == self.job.config.key, "a run's folder holds another run's checkpoint"
        assert state.optimizer is not None
        self.core.load_trainable_state(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.epoch, self.step = state.epoch, state.step
        self.best_top1, self.seconds = state.best_top1, state.seconds
        self._forget_after(self.epoch)

    def run(self, on_epoch: Callable[[Row], None]) -> None:
        model = self._wrapped()
        while self.epoch < self.train_config.epochs:
            started = time.monotonic()
            self.epoch += 1
            row: Row = {"epoch": self.epoch, **self._train_epoch(model)}
            if self.epoch % self.train_config.eval_every == 0 or self.epoch == self.train_config.epochs:
                self.scores = self.validate()
                row |= {f"validation/{name}": value for name, value in self.scores.figures().items()}
            else:
                self.scores = None
            self.seconds += time.monotonic() - started
            bad = self.bad + (self.scores.bad if self.scores is not None else 0)
            row |= {"bad_clips": bad, "seconds": round(self.seconds, 3), "time": time.time_ns() // 1_000_000}
            if distributed.rank() == 0:
                self._keep(row)
            distributed.barrier()
            on_epoch(row)

    def _train_epoch(self, model: nn.Module) -> Row:
        """One pass; returns mean loss and accuracy over it, throughput and the share spent waiting."""
        seed = self.train_config.seed * 1_000_003 + self.epoch
        torch.manual_seed(seed * 1_009 + distributed.rank())
        self.job.train.batch_sampler.set_epoch(self.epoch)
        model.train()
        self.bad = 0
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, hits, clips
        started, waited, before = time.monotonic(), 0.0, time.monotonic()
        for batch in self.job.train:
            waited += time.monotonic() - before
            sums += self._step(model, batch)
            before = time.monotonic()
        elapsed = time.monotonic() - started
        loss, hits, clips = distributed.sum_(sums).tolist()
        return {
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train/loss": loss / max(clips, 1),
            "train/top1": hits / max(clips, 1),
            "clips_per_second": round(clips / elapsed, 2),
            "data_wait_share": round(waited / elapsed, 4),
        }

    def _step(self, model: nn.Module, batch: dict) -> Tensor:
        train = self.train_config
        scale = optim.lr_scale(self.step, self.total_steps, self.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = train.lr * scale
        clip, labels_BH = to_device(batch["clip"], self.device), batch["labels"].to(self.device)
        self._tell_bad("train", batch["bad"])
        if not clip:
            return self._skip(len(batch["bad"]))
        targets = labels_BH
        if self.job.mix is not None:
            clip, targets = self.job.mix(clip, self.heads.one_hot(labels_BH))
            labels_BH = torch.stack([part.argmax(1) for part in self.heads.split(targets)], dim=1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            logits_BK = model(clip)
        loss = self.heads.loss(logits_BK, targets, label_smoothing=train.label_smoothing).mean()
        share = self._agree(loss, len(labels_BH), len(batch["bad"]))
        (loss * share).backward()
        if train.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.core.parameters(), train.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        hits = self.heads.hits(logits_BK.detach(), labels_BH).sum()
        return torch.stack([loss.detach() * len(labels_BH), hits, hits.new_tensor(len(labels_BH))]).double()

    def _agree(self, loss: Tensor, clips: int, bad: int) -> float:
        """Before the update, of all workers: stop together if any loss is not finite, or too many clips bad.

        Returns:
            What this worker's mean loss counts in the mean over workers: 1, unless a bad clip is left out.
        """
        infinite = (~torch.isfinite(loss.detach())).double()
        counts = torch.stack([infinite, infinite.new_tensor(clips), infinite.new_tensor(bad)])
        not_finite, all_clips, all_bad = distributed.sum_(counts).tolist()
        if not_finite:
            raise NotFiniteError(
                f"loss is not finite at step {self.step} (epoch {self.epoch}); the weights were left as they "
                "were; a smaller train.lr or train.precision=fp32 may help"
            )
        self.bad += int(all_bad)
        self._require_few_bad("train", self.bad, len(self.job.train.dataset))
        return clips * distributed.world() / all_clips

    def _skip(self, bad: int) -> Tensor:
        """A step of which no clip could be read: nothing is learned from it."""
        if distributed.world() > 1:
            raise InputError(
                f"no clip of a worker's share of step {self.step} can be read; {self.folder.bad} names them"
            )
        self.step += 1
        self.bad += bad
        self._require_few_bad("train", self.bad, len(self.job.train.dataset))
        return torch.zeros(3, dtype=torch.float64, device=self.device)

    def _tell_bad(self, split: str, bad: Bad) -> None:
        for number, reason in self.folder.add_bad(split, bad):
            log.warning("left out clip %d of the %s split: %s", number, split, reason)

    def _require_few_bad(self, split: str, bad: int, clips: int) -> None:
        limit = self.job.config.data.max_bad_fraction
        if bad > limit * clips:
            first = next((row["reason"] for row in self.folder.bad_clips()), "clips cannot be read")
            raise InputError(
                f"{first}; with it {bad} of the {clips} clips of the {split} split cannot be read, more than "
                f"data.max_bad_fraction {limit:g} allows; {self.folder.bad} names them"
            )

    def validate(self) -> Scores:
        scores = evaluate(
            self.core,
            self.job.validation,
            self.heads,
            precision=self.train_config.precision,
            on_bad=lambda bad: self._tell_bad("validation", bad),
        )
        self._require_few_bad("validation", scores.bad, len(self.job.validation.dataset))
        return scores

    def _keep(self, row: Row) -> None:
        """The row, then its checkpoint: after a crash in between, ``resume`` drops the row again."""
        self.folder.append(row)
        if self.scores is not None and self.scores.top1 > self.best_top1:
            self.best_top1 = self.scores.top1
            checkpoint.save(self.folder.best, self._checkpoint(with_optimizer=False))
        checkpoint.save(self.folder.last, self._checkpoint(with_optimizer=True))

    def _checkpoint(self, *, with_optimizer: bool) -> checkpoint.Checkpoint:
        return checkpoint.Checkpoint(
            config=self.job.config,
            classes=self.job.classes,
            model=self.core.trainable_state(),
            tower=self.job.tower_hash,
            epoch=self.epoch,
            step=self.step,
            figures=self.scores.figures() if self.scores is not None else {},
            threads=torch.get_num_threads(),
            best_top1=self.best_top1,
            seconds=self.seconds,
            optimizer=self.optimizer.state_dict() if with_optimizer else None,
        )

    def _forget_after(self, epoch: int) -> None:
        if distributed.rank() == 0:
            self.folder.keep_epochs(epoch)
        distributed.barrier()

    def _wrapped(self) -> nn.Module:
        if self.train_config.compile:
            self.core.compile()  # in place: the state keeps its keys, validation is compiled as well
        if distributed.world() == 1:
            return self.core
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.core, device_ids=ids, broadcast_buffers=False)


def fit(job: Job, folder: RunFolder, on_epoch: Callable[[Row], None]) -> Scores:
    """Train ``job`` until its last epoch, continuing from ``folder`` where it was interrupted.

    Args:
        job: the model, the loaders and the config.
        folder: where checkpoints and ``metrics.jsonl`` go; every worker sees the same folder.
        on_epoch: called on every worker after each epoch, with the row that worker 0 has kept.

    Returns:
        Validation scores of the last epoch.

    Raises:
        NotFiniteError: the loss became infinite or NaN.
        InputError: a clip that cannot be read, with its path.
    """
    trainer = Trainer(job, folder)
    trainer.resume()
    trainer.run(on_epoch)
    return trainer.scores or trainer.validate()
