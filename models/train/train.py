"""Train the model: draws its pictures on the device, stops by the clock, resumes from its checkpoint.

    python -m models.train.train --data DIR --tokenizer FOLDER --run FOLDER --minutes 17

The learning rate follows the share of the whole time budget that is used up, over all resumed runs; --stop-after ends
one run early (with a checkpoint) without changing that schedule.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from . import render as renderer
from .batch import CHUNK, MAIN_SIZE, OTHER_SIZES, Chunk, Words
from .check import Check
from .loader import Loader, Recipe
from .muon import Optimizer
from .network import TinyVL
from .prepare import default_data, kits

WARM_UP = 300
"""Steps over which the learning rate rises."""


def schedule(step: int, share: float, warm_up: int = WARM_UP) -> float:
    """Share of the peak learning rate. share: of the time budget used, 0..1."""
    return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def to_device(arrays: dict, device: torch.device) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value).to(device, non_blocking=True) for key, value in arrays.items()}


def pictures_of(chunk: Chunk, atlas: renderer.Atlas, device: torch.device) -> list[Tensor]:
    """Normalised pictures of both sizes."""
    out = []
    for arrays, size in ((chunk.main, MAIN_SIZE), (chunk.other, chunk.other_size)):
        drawn = to_device(arrays, device)
        with torch.no_grad():
            out.append(renderer.normalize(renderer.render(drawn, size, atlas)))
    return out


def loss_of(model: TinyVL, chunk: Chunk, pictures: list[Tensor], device: torch.device) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    # Places are found on the CPU: finding them on the GPU would make it wait in the middle of the step.
    said = torch.from_numpy(np.flatnonzero(chunk.answer[:, 1:].flatten())).to(device)
    ids = torch.from_numpy(chunk.ids).to(device)
    positions = torch.from_numpy(chunk.positions).to(device)
    slots = torch.cat([torch.from_numpy(s) for s in (chunk.slots_main, chunk.slots_other)]).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model(ids, positions, pictures, slots)
        logits = model.logits(hidden[:, :-1].flatten(0, 1)[said])
    return F.cross_entropy(logits.float(), ids[:, 1:].flatten()[said])


def compile_blocks(model: TinyVL) -> None:
    """Compile each block alone: all blocks of a tower share one small graph, so start-up stays short."""
    torch._dynamo.config.recompile_limit = 64
    for block in [*model.model["visual"].blocks, *model.model["language_model"].layers]:
        block.compile(dynamic=False)


def save(path: Path, model: TinyVL, optimizer: Optimizer, step: int, seconds: float) -> None:
    """Written aside first: an interruption leaves the previous checkpoint whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}, aside
    )
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data(), help="folder made by models.train.prepare")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder made by models.train.tokenizer")
    parser.add_argument("--run", type=Path, required=True, help="folder for the checkpoint and the log")
    parser.add_argument("--minutes", type=float, default=17, help="time budget of the whole training")
    parser.add_argument(
        "--stop-after", type=float, default=0, help="minutes after which this run ends (0: at the budget)"
    )
    parser.add_argument("--steps", type=int, default=0, help="end after so many steps in all (0: by the clock)")
    parser.add_argument("--chunks", type=int, default=8, help=f"chunks of {CHUNK} conversations in a step")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 3))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=2e-3)
    parser.add_argument("--check-every", type=float, default=60, help="seconds between quick exams")
    parser.add_argument("--check-size", type=int, default=48, help="questions a task in a quick exam")
    parser.add_argument("--save-every", type=float, default=150, help="seconds between checkpoints")
    parser.add_argument("--init", type=Path, help="folder of a model to start from, for a second stage")
    parser.add_argument("--share-from", type=float, default=0.0, help="where in the schedule to begin (0..1)")
    parser.add_argument(
        "--other-sizes",
        type=int,
        default=len(OTHER_SIZES),
        help="how many of the picture sizes beside the main one to use; each costs compile time",
    )
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()

    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    atlas, fonts, table = renderer.load(args.data, device)
    kit, _ = kits(args.data, table)
    unseen_atlas, _, unseen_table = renderer.load(args.data, device, "icons-unseen.npz")
    _, unseen_kit = kits(args.data, unseen_table)
    words = Words(args.tokenizer / "tokenizer.json")

    model = TinyVL().init(args.seed).to(device)
    optimizer = Optimizer(list(model.named_parameters()), args.muon_rate, args.adam_rate)
    if args.init:
        model.load_state_dict({k: v.float() for k, v in load_file(args.init / "model.safetensors").items()})
    step, before = 0, 0.0
    checkpoint = args.run / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, before = saved["step"], saved["seconds"]
        print(f"resumed at step {step}, {before:.0f} s of {args.minutes * 60:.0f} s used", flush=True)
    check = Check(1, args.check_size, words, fonts, unseen_kit, unseen_atlas, device)
    if not args.no_compile:
        compile_blocks(model)
    loader = Loader(
        Recipe(args.seed, args.chunks, OTHER_SIZES[: args.other_sizes], args.tokenizer / "tokenizer.json", fonts, kit),
        step,
        args.workers,
    )
    args.run.mkdir(parents=True, exist_ok=True)
    log = (args.run / "log.jsonl").open("a")
    budget = args.minutes * 60
    print(f"ready after {time.monotonic() - began:.1f} s on {device}", flush=True)

    def rate_at(used: float) -> float:
        share = args.share_from + (1 - args.share_from) * used / budget
        return schedule(step, share, WARM_UP // 5 if args.init else WARM_UP)

    start = checked = saved_at = time.monotonic()
    bar = tqdm(total=round(budget), initial=round(before), unit="s", mininterval=10, desc="training")
    losses: list[Tensor] = []
    first = step
    while True:
        now = time.monotonic()
        used = before + now - start
        done = (
            used >= budget
            or (args.steps and step >= args.steps)
            or (args.stop_after and now - began >= args.stop_after * 60)
        )
        if step > first and (done or now - checked >= args.check_every):
            checked = now
            marks = check.measure(model)
            line = {
                "step": step,
                "seconds": round(used, 1),
                "loss": round(float(torch.stack(losses).mean()), 4),
                "rate": round(rate_at(used), 4),
                "right": marks,
            }
            losses = []
            log.write(json.dumps(line) + "\n")
            log.flush()
            tqdm.write(f"step {step} loss {line['loss']} " + " ".join(f"{k}={v:.2f}" for k, v in marks.items()))
        if done or now - saved_at >= args.save_every:
            saved_at = now
            save(checkpoint, model, optimizer, step, used)
        if done:
            break
        chunk = loader.next()
        loss = loss_of(model, chunk, pictures_of(chunk, atlas, device), device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate_at(used))
        for parameter in model.parameters():
            parameter.grad = None
        losses.append(loss.detach())
        step += 1
        bar.update(round(used) - bar.n)
        bar.set_postfix(step=step, refresh=False)
    bar.close()
    loader.close()
    rate = (step - first) * args.chunks * CHUNK / max(1e-9, time.monotonic() - start)
    print(f"stopped at step {step}: {rate:.0f} conversations a second", flush=True)


if __name__ == "__main__":
    main()
