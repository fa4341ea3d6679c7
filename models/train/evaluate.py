"""Measure the model as it is served: the exported folder, transformers' own classes, greedy decoding, on a CPU.

Every question is asked twice: with its pictures, and "blind", with each picture replaced by plain grey. What the blind
score reaches is guessing. Pictures come from styles, fonts, words and an icon set that training never showed (exam.py).

    python -m models.train.evaluate [--model models/tiny-vl] [--per-task 40] [--seen] [--card]
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from . import render
from .batch import stack_drawings
from .drawing import drawing
from .exam import SIZE, TASKS, Question, paper
from .facts import agrees
from .prepare import default_data, kits, make_forms, make_icons
from .sources import UNSEEN_ICON_SET

MODEL = Path(__file__).parents[1] / "tiny-vl"
MARK = "<!-- measured: models/train/evaluate.py writes between these marks -->"

NOTES = {
    "color": "of a shape, hatched style",
    "shape": "hatched style",
    "size": "which is bigger; big or small",
    "count": "0 to 6",
    "position": "left, right, above, below",
    "place": "which ninth of the picture",
    "yes/no": "is there, is it red, is it left of",
    "background": "its color",
    "cannot tell": "says so when the picture does not show it",
    "describe": "every word right",
    "follow-up": "a question that refers back",
    "two pictures": "what, how many, which",
    "number": "1 to 4 digits, unseen fonts",
    "word": "unseen words in unseen fonts",
    "name": "377 names, unseen icon style",
    "yes/no about a name": "unseen icon style",
    "talk": "no picture; exact sentence",
}


class Answerer:
    """The exported folder behind transformers' classes. The processor is taken apart because its video half needs
    torchvision; the picture half and the tokenizer are the real ones."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

        try:
            from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Processor
        except ImportError:
            from transformers import Qwen2VLImageProcessor as Processor
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.processor = Processor.from_pretrained(folder)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self.image = self.model.config.image_token_id
        self.typed = "mm_token_type_ids" in inspect.signature(self.model.forward).parameters

    def prompt(self, question: Question, tokens: list[int]) -> str:
        """tokens: how many image tokens each picture has."""
        messages = []
        for index, turn in enumerate(question.turns):
            images = [{"type": "image"}] * len(question.pictures) if index == 0 else []
            messages.append({"role": "user", "content": [*images, {"type": "text", "text": turn.question}]})
            if index < len(question.turns) - 1:
                messages.append({"role": "assistant", "content": turn.answer})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        parts = text.split("<|image_pad|>")
        return "".join(part + "<|image_pad|>" * count for part, count in zip(parts, [*tokens, 0], strict=True))

    @torch.no_grad()
    def answer(self, questions: list[Question], pictures: list[list[Image.Image]]) -> list[str]:
        flat = [picture for group in pictures for picture in group]
        inputs = dict(self.processor(images=flat, return_tensors="pt")) if flat else {}
        counts = (inputs["image_grid_thw"].prod(-1) // 4).tolist() if flat else []
        left = iter(counts)
        prompts = [self.prompt(q, [next(left) for _ in group]) for q, group in zip(questions, pictures, strict=True)]
        text = self.tokenizer(prompts, return_tensors="pt", padding=True)
        ids = text["input_ids"]
        inputs |= {"input_ids": ids, "attention_mask": text["attention_mask"]}
        if self.typed and flat:
            inputs["mm_token_type_ids"] = (ids == self.image).int()
        inputs = {key: value.to(self.model.device) for key, value in inputs.items()}
        out = self.model.generate(**inputs, max_new_tokens=100, do_sample=False)
        return self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


def draw(questions: list[Question], atlas: render.Atlas, fonts: render.Fonts) -> list[list[Image.Image]]:
    """The pictures of each question."""
    torch.manual_seed(0)
    flat = [drawing(picture, fonts) for question in questions for picture in question.pictures]
    images: list[Image.Image] = []
    for i in tqdm(range(0, len(flat), 32), desc="drawing"):
        batch = {key: torch.from_numpy(value) for key, value in stack_drawings(flat[i : i + 32]).items()}
        pixels = render.render(batch, SIZE, atlas).byte().permute(0, 2, 3, 1).numpy()
        images += [Image.fromarray(p) for p in pixels]
    left = iter(images)
    return [[next(left) for _ in question.pictures] for question in questions]


def score(
    answerer: Answerer, questions: list[Question], pictures: list[list[Image.Image]], name: str, batch: int = 32
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Share right by task, and every answer."""
    # Alike lengths together: less padding.
    order = sorted(
        range(len(questions)),
        key=lambda i: (len(questions[i].pictures), len(questions[i].turns), len(questions[i].turns[-1].answer)),
    )
    right: dict[str, list[bool]] = defaultdict(list)
    said: list[dict[str, str]] = []
    for i in tqdm(range(0, len(order), batch), desc=name):
        part = order[i : i + batch]
        # One batch never mixes questions with and without pictures.
        for group in ([j for j in part if questions[j].pictures], [j for j in part if not questions[j].pictures]):
            answers = answerer.answer([questions[j] for j in group], [pictures[j] for j in group]) if group else []
            for j, answer in zip(group, answers, strict=True):
                last = questions[j].turns[-1]
                ok = agrees(answer, last.answer, last.fact)
                right[questions[j].task].append(ok)
                said.append(
                    {
                        "task": questions[j].task,
                        "question": last.question,
                        "right": last.answer,
                        "said": answer,
                        "ok": str(ok),
                    }
                )
    return {task: float(np.mean(values)) for task, values in right.items()}, said


def table(seeing: dict[str, float], blind: dict[str, float], per_task: int) -> str:
    lines = ["| task | with the picture | blind | what is asked |", "| --- | ---: | ---: | --- |"]
    for task in TASKS:
        if task in seeing:
            blind_text = "" if task == "talk" else f"{blind[task]:.0%}"
            lines.append(f"| {task} | {seeing[task]:.0%} | {blind_text} | {NOTES[task]} |")
    return "\n".join([*lines, "", f"{per_task} questions a task."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument(
        "--data", type=Path, default=default_data(), help="folder for fonts and icons; filled when empty"
    )
    parser.add_argument("--per-task", type=int, default=40, help="questions a task")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, help="only these")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--seen", action="store_true", help="styles, fonts and icons of training (needs all sources)")
    parser.add_argument("--device", default="cpu", help="where the model runs; pictures are drawn on the CPU")
    parser.add_argument("--card", action="store_true", help="write the table into the model's README.md")
    parser.add_argument("--json", type=Path, help="write scores and every answer here")
    args = parser.parse_args()
    began = time.monotonic()

    icons = "icons.npz" if args.seen else "icons-unseen.npz"
    args.data.mkdir(parents=True, exist_ok=True)
    if not (args.data / "forms.npz").exists():
        make_forms(args.data / "sources", args.data, only_unseen=not args.seen)
    if not (args.data / icons).exists():
        print(f"making {icons}" + ("" if args.seen else f" from {UNSEEN_ICON_SET} (never used in training)"))
        make_icons(args.data / "sources", args.data, unseen=not args.seen)
    atlas, fonts, names = render.load(args.data, icons=icons)
    kit = kits(args.data, names)[0 if args.seen else 1]
    if not kit.fonts:
        raise SystemExit(f"{args.data} has no fonts of training: run python -m models.train.prepare first")

    questions = paper(args.seed, kit, args.per_task, args.tasks)
    pictures = draw(questions, atlas, fonts)
    answerer = Answerer(args.model, args.device)
    seeing, said = score(answerer, questions, pictures, "with pictures")
    grey = [[Image.new("RGB", SIZE, (128, 128, 128)) for _ in group] for group in pictures]
    blind, _ = score(answerer, questions, grey, "blind")

    result = table(seeing, blind, args.per_task)
    print(f"\n{result}\n\n{time.monotonic() - began:.0f} s")
    if args.json:
        args.json.write_text(json.dumps({"seeing": seeing, "blind": blind, "answers": said}, indent=1))
    if args.card:
        path = args.model / "README.md"
        before, _, after = path.read_text().split(MARK)
        path.write_text(f"{before}{MARK}\n\n{result}\n\n{MARK}{after}")


if __name__ == "__main__":
    main()
