"""A pretrained transformer as a ranker, behind the interface of the light one. Needs PyTorch.

A file of it holds what was trained, its layers or only a head, and the name of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weir import hub
from weir.errors import BadRequest, ConfigError
from weir.gguf import GGUF
from weir.models.load import opened
from weir.ranker import files
from weir.ranker.backbone import Backbone, Kernel, scaled
from weir.ranker.files import Ranker
from weir.text import Text

FORMAT = "weir transformer ranker 2"
HEAD, TAIL = 160, 96
"""Tokens read of a longer prompt: what is asked stands at an end."""

MARK = "weir's mark"
LONGEST = 8 * (HEAD + TAIL)  # characters at each end that are looked at

SAMPLE = "Write three short lines of Python 3.11, then say why: naïve or 東京?"
ALIKE = 0.3  # how far embeddings of it may differ, as those of one model in two formats do


@dataclass(slots=True)
class Transformer(Ranker):
    """model: its name for the hub. before, after: what its template puts around a prompt."""

    backbone: Backbone
    text: Text
    model: str
    before: str
    after: str
    scores: NDArray[np.float32]
    lengths: NDArray[np.float32]
    about: str = ""

    @classmethod
    def pretrained(cls, model: str, layers: int, outputs: int = 1) -> Transformer:
        """Not trained yet: all scores are equal. Fetches the model if it is not here. Raises
        `ConfigError` for one that it cannot be made of."""
        source = hub.resolve(model)
        spec, checkpoint = opened(source.path)
        gguf = source.kind == "gguf"
        text = Text.from_gguf(GGUF.open(source.path)) if gguf else Text.from_folder(source.path)
        backbone = Backbone(spec, layers, HEAD + TAIL, outputs)
        backbone.read(checkpoint)
        try:
            before, _, after = text.chat([{"role": "user", "content": MARK}]).partition(MARK)
        except BadRequest:  # the model has no template
            before, after = "", "\n"
        none = np.zeros(1, np.float32)
        return cls(backbone, text, model, before, after, none, none)

    def tokens(self, prompt: str) -> Tensor:
        """int64 [L], of what the model would be given to answer."""
        if len(prompt) > 2 * LONGEST:
            prompt = prompt[:LONGEST] + "\n" + prompt[-LONGEST:]
        prompt = prompt.encode("utf-8", "replace").decode()
        ids = self.text.encode(self.before + prompt + self.after, add_special_tokens=False)
        return torch.tensor(ids if len(ids) <= HEAD + TAIL else ids[:HEAD] + ids[-TAIL:])

    def _each(self, prompts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores, float32 [P], and states as they compare, [P, 2 H]."""
        if not prompts:
            return np.zeros(0, np.float32), np.zeros((0, self.backbone.norm.weight.numel()), "f4")
        head = self.backbone.head
        with torch.inference_mode():
            states = self.backbone.states([self.tokens(prompt) for prompt in prompts])
            found = head(states).float().cpu()
            near = scaled(head.standard(states) if isinstance(head, Kernel) else states).cpu()
        best = found[:, 0] if found.shape[1] == 1 else found.argmax(1)
        return best.float().numpy(), near.numpy()

    def sample(self) -> NDArray[np.float32]:
        """float32 [L, H]: by what a file knows the tokens and the embedding that it was trained on,
        which it does not hold."""
        embedding = self.backbone.embedding
        found = embedding(self.tokens(SAMPLE).to(embedding.weight.device)).float().cpu()
        made: NDArray[np.float32] = found.numpy()
        return made

    def save(self, path: Path) -> None:
        """Raises `ConfigError`."""
        weights = {
            f"weight.{name}": (weight.half() if weight.ndim > 1 else weight).cpu().numpy()
            for name, weight in self.backbone.state_dict().items()
            if not name.startswith(_untrained(self.backbone))
        }
        own = {"model": self.model, "about": self.about, "layers": len(self.backbone.layers)}
        own |= {"scores": self.scores, "lengths": self.lengths, "sample": self.sample()}
        files.save(path, FORMAT, {**own, **weights})


def restore(arrays: Mapping[str, Any]) -> Transformer:
    """What was saved, on the GPU if there is one. Raises `ValueError` or what PyTorch does for
    arrays that are none, and `ConfigError` without the model that they were trained on."""
    model, head = str(arrays["model"]), arrays["weight.head.weight"]
    made = Transformer.pretrained(model, int(arrays["layers"]), len(head))
    backbone = made.backbone
    if (anchors := arrays.get("weight.head.anchors")) is not None:
        backbone.head = Kernel(*anchors.shape)
    kept = {
        name.removeprefix("weight."): torch.from_numpy(array).float()
        for name, array in arrays.items()
        if name.startswith("weight.")
    }
    theirs = _untrained(backbone)
    own = {name: w for name, w in backbone.state_dict().items() if name.startswith(theirs)}
    backbone.load_state_dict(own | kept)
    made.scores, made.lengths = arrays["scores"], arrays["lengths"]
    made.about = str(arrays["about"])
    now, then = made.sample(), arrays["sample"]
    if now.shape != then.shape or np.abs(now - then).sum() > ALIKE * np.abs(then).sum():
        raise ConfigError(f"trained on another {model} than there is now: train it again")
    backbone.eval().to(device())
    return made


def _untrained(backbone: Backbone) -> tuple[str, ...]:
    """The beginnings of the names of what is the pretrained model's, and not in a file."""
    frozen = isinstance(backbone.head, Kernel)
    return ("embedding.", "layers.", "norm.") if frozen else ("embedding.",)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
