"""Train the sample reader on pictures drawn on the fly: the ViT by its cells, then all by answers.

    python scripts/train_sample.py --out RUN --vit-steps 900 --joint-steps 2600

Writes RUN/reader (the checkpoint), RUN/curve.jsonl and RUN/state.pt, from which --resume goes on.
Two processes of one thread each share a step; the same options give the same pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sample.checkpoint import make_spec, write_checkpoint
from sample.evaluation import measure_exact
from sample.losses import answer, count_exact, measure_cell_loss, see
from sample.optimizer import MasterOptimizer, make_learning_rate
from sample.reader import Reader
from sample.schooling import make_groups, make_level
from sample.tasks import PAGE
from sample.words import build_tokenizer

WARMUP_STEPS = 150
LOG_EVERY_STEPS = 25


@dataclass(frozen=True, slots=True)
class Config:
    """One training run."""

    out: Path
    vit_steps: int
    joint_steps: int
    vit_lr: float
    joint_lr: float
    cell_weight: float
    num_groups: int
    vit_pages: int
    joint_pages: int
    num_processes: int
    seed: int
    eval_every_steps: int
    eval_examples: int
    port: int
    resume: bool

    def __post_init__(self) -> None:
        if self.num_groups % self.num_processes:
            raise ValueError(
                f"{self.num_groups} groups do not deal out to {self.num_processes} processes"
            )

    @property
    def num_steps(self) -> int:
        """Both stages."""
        return self.vit_steps + self.joint_steps


def parse_args(argv: list[str] | None = None) -> Config:
    """Options -> Config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vit-steps", type=int, default=900)
    parser.add_argument("--joint-steps", type=int, default=2600)
    parser.add_argument("--vit-lr", type=float, default=1e-3)
    parser.add_argument("--joint-lr", type=float, default=8e-4)
    parser.add_argument(
        "--cell-weight", type=float, default=0.5, help="of the cell loss in the joint stage"
    )
    parser.add_argument(
        "--num-groups", type=int, default=6, help="groups of equal pictures in one step"
    )
    parser.add_argument("--vit-pages", type=int, default=4, help="practice pages among the groups")
    parser.add_argument("--joint-pages", type=int, default=1)
    parser.add_argument("--num-processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-every-steps", type=int, default=400)
    parser.add_argument("--eval-examples", type=int, default=100, help="per task, while training")
    parser.add_argument("--port", type=int, default=29511, help="of the local process group")
    parser.add_argument("--resume", action="store_true")
    return Config(**vars(parser.parse_args(argv)))


def save_state(config: Config, reader: Reader, optimizer: MasterOptimizer, step: int) -> None:
    """state.pt and the checkpoint folder; a run broken off here leaves the earlier state."""
    partial = config.out / "state.pt.partial"
    torch.save({"step": step, "optimizer": optimizer.state()}, partial)
    os.replace(partial, config.out / "state.pt")
    write_checkpoint(config.out / "reader", reader, build_tokenizer())


def train(rank: int, config: Config) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    if config.num_processes > 1:
        address = f"tcp://127.0.0.1:{config.port}"
        dist.init_process_group(
            "gloo", init_method=address, rank=rank, world_size=config.num_processes
        )
    tokenizer = build_tokenizer()
    reader = Reader(make_spec(tokenizer))
    reader.init_weights(config.seed)
    reader.to(torch.bfloat16)
    optimizer = MasterOptimizer(reader)
    first_step = 0
    if config.resume:
        saved = torch.load(config.out / "state.pt", weights_only=True)
        optimizer.load(saved["optimizer"])
        first_step = saved["step"]
    for block in (*reader.visual.blocks, reader.visual.merger, *reader.model.layers):
        block.compile(dynamic=True)
    curve = (config.out / "curve.jsonl").open("a") if rank == 0 else None
    started, sums, counts = time.monotonic(), {}, {}

    def note(name: str, value: float, weight: int = 1) -> None:
        sums[name] = sums.get(name, 0.0) + value
        counts[name] = counts.get(name, 0) + weight

    for step in range(first_step, config.num_steps):
        joint = step >= config.vit_steps
        level = make_level(step, config.vit_steps + config.joint_steps // 6)
        rate = (
            make_learning_rate(
                step, config.vit_steps, config.num_steps, config.joint_lr, WARMUP_STEPS, 0.01
            )
            if joint
            else make_learning_rate(step, 0, config.vit_steps, config.vit_lr, WARMUP_STEPS, 0.4)
        )
        share = config.num_processes / config.num_groups
        for batch in make_groups(
            tokenizer,
            config.seed,
            step,
            config.num_groups,
            rank,
            config.num_processes,
            config.joint_pages if joint else config.vit_pages,
            level,
        ):
            image_embeds = see(reader, batch)
            loss, cells = measure_cell_loss(reader.cells(image_embeds), batch.cell_labels)
            note("cell_loss", float(loss.detach()))
            note(f"cells {batch.shape.task}", float(cells))
            loss = loss * (config.cell_weight if joint else 1.0)
            if joint and batch.shape.task != PAGE:
                logits = answer(reader, batch, image_embeds)
                answer_loss = torch.nn.functional.cross_entropy(logits.float(), batch.answer_ids)
                note("answer_loss", float(answer_loss.detach()))
                note(
                    f"exact {batch.shape.task}",
                    count_exact(logits, batch),
                    len(batch.answer_lengths),
                )
                loss = loss + answer_loss
            (loss * share).backward()
        norm = optimizer.step(rate)
        if rank:
            continue
        note("grad_norm", norm)
        done = step + 1
        if done % LOG_EVERY_STEPS == 0:
            row = {
                "step": done,
                "seconds": round(time.monotonic() - started),
                "lr": float(f"{rate:.3g}"),
            }
            row |= {name: round(sums[name] / counts[name], 4) for name in sorted(sums)}
            sums.clear()
            counts.clear()
            print(json.dumps(row), file=curve, flush=True)
        if done % config.eval_every_steps == 0 or done == config.num_steps:
            save_state(config, reader, optimizer, done)
            held_out = measure_exact(reader, tokenizer, config.eval_examples)
            row = {"step": done, "seconds": round(time.monotonic() - started), "held_out": held_out}
            print(json.dumps(row), file=curve, flush=True)
            print(json.dumps(row), file=sys.stderr, flush=True)


def main() -> None:
    """Start the processes and wait for them."""
    config = parse_args()
    config.out.mkdir(parents=True, exist_ok=True)
    if config.num_processes == 1:
        train(0, config)
    else:
        mp.spawn(train, (config,), nprocs=config.num_processes)


if __name__ == "__main__":
    main()
