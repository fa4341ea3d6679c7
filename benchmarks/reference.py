"""The baseline: the same model by ``model.generate`` in one process."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field

import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.generation.streamers import BaseStreamer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


@dataclass
class Answer:
    """Seconds to the first token and to the last; the tokens, stop token left out.

    ``margins``, where asked for, are how far each token's score is above the next best one's: where they are equal,
    no implementation is wrong.
    """

    first: float
    total: float
    token_ids: list[int]
    margins: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


class _FirstToken(BaseStreamer):
    """Notes when the first generated token comes; generate() puts the prompt first."""

    def __init__(self) -> None:
        self.calls = 0
        self.at = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.calls += 1
        if self.calls == 2:
            self.at = time.perf_counter()

    def end(self) -> None: ...


class Reference:
    """Everything a request needs, as a straightforward program would do it: decode, preprocess, tower, generate."""

    def __init__(self, path: str, *, threads: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        torch.set_num_threads(threads)
        self.device = device
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(path)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=dtype).to(device).eval()

    def answer(self, text: str, picture: bytes | None, tokens: int, *, stop: bool = False) -> Answer:
        """Greedy answer to one turn of ``text`` and at most one picture; ``tokens`` exactly unless ``stop``."""
        parts: list[dict[str, str]] = [{"type": "text", "text": text}]
        pictures = []
        if picture is not None:
            parts.insert(0, {"type": "image"})
            pictures.append(picture)
        return self.chat([{"role": "user", "content": parts}], pictures, tokens, stop=stop)

    @torch.inference_mode()
    def chat(
        self,
        messages: list[dict[str, object]],
        pictures: list[bytes],
        tokens: int,
        *,
        stop: bool = False,
        margins: bool = False,
    ) -> Answer:
        """As ``answer``, for a whole conversation; ``pictures`` in the order in which the messages show them."""
        began = time.perf_counter()
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pad = self.model.config.image_token_id
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        vision: dict[str, torch.Tensor] = {}
        if pictures:
            images = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
            features = self.processor(images=images, return_tensors="pt")
            counts = iter((features["image_grid_thw"].prod(-1) // self.processor.merge_size**2).tolist())
            ids = [token for id in ids for token in ([id] * next(counts) if id == pad else [id])]
            vision = {name: tensor.to(self.device) for name, tensor in features.items()}
        input_ids = torch.tensor([ids], device=self.device)
        if pictures:
            vision["mm_token_type_ids"] = (input_ids == pad).int()
        first = _FirstToken()
        output = self.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            **vision,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=self.model.generation_config.eos_token_id if stop else None,
            streamer=first,
            return_dict_in_generate=True,
            output_logits=margins,
        )
        new = output.sequences[0, len(ids) :].tolist()
        best = [logits[0].float().topk(2).values for logits in output.logits or ()]
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        if stop and new and new[-1] in ends:
            new.pop()
        return Answer(first.at - began, time.perf_counter() - began, new, [float(two[0] - two[1]) for two in best])
