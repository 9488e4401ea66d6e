"""Text encoders of transformers, as they were trained by others: CLIP, T5, BERT."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.frozen import Frozen
from diffusion_lab.networks.text import Encoded, TextEncoder, to_captions, too_long

# Where a model's weights and its tokenizer are: side by side, or as diffusers lays them out.
LAYOUTS = (("", ""), ("text_encoder", "tokenizer"))
SAFELY = {"trust_remote_code": False}  # whoever names a model does not thereby run its code
CLIP_TEXT = "clip_text_model"


class FrozenTextEncoder(TextEncoder):
    """A text encoder of transformers: never trained, in no checkpoint, shared by all copies of its holder.

    Every text is padded to `max_length`, so that what else is in a batch makes no difference, and what it gave is kept:
    a text is encoded once. It runs in float32 whatever the module's precision. To look texts up, their bytes are copied
    to the CPU, for which a GPU is waited.

    The pooled vector is CLIP's own, that of the end token; otherwise it is the mean of the tokens that count.
    """

    def __init__(
        self,
        name: str,
        max_length: int | None = None,
        mask: bool = True,
        cache: int = 4096,
        digest: str | None = None,
    ) -> None:
        """
        Args:
            name: A folder with an encoder and its tokenizer, a diffusers folder with `text_encoder` and `tokenizer` in
                it, or the id of either on the Hugging Face hub.
            max_length: Tokens of a text, begin and end included; as many as the tokenizer or the encoder says unless
                given, or 128 where neither does.
            mask: Keep padding from being attended to; false attends to it, as Stable Diffusion 1 does.
            cache: How many texts' tokens are kept on the device; each takes max_length * D * 4 bytes.
            digest: The SHA-256 of the weights that it must have; recorded with a model, which thereby refuses others.

        Raises:
            InputError: There is no such encoder, it is of something else, or its weights are others.
        """
        super().__init__()
        if cache < 0:
            raise InputError(f"cache, a number of texts, must be at least 0: got {cache}")
        self._tokenizer, model = load(name)
        self._frozen, self.is_clip = Frozen(model), model.config.model_type == CLIP_TEXT
        self.name, self.mask, self.cache = name, mask, cache
        found = self._frozen.digest()
        if digest not in (None, found):
            raise InputError(
                f"the text encoder at {name} has weights of SHA-256 {found}, not {digest}: give the folder or the id "
                "of those, or leave digest out"
            )
        self.__dict__["_init_args"]["digest"] = found  # so that a checkpoint knows what it was trained with
        self.max_length = check_length(name, max_length, self._tokenizer, model)
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        try:
            empty = self(torch.zeros(1, 1, dtype=torch.uint8))  # which is null, and so is needed in any case
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = f"{type(model).__name__} ({str(error).splitlines()[0]})"
            raise InputError(f"{name} is no encoder of texts but a {what}: give CLIP, T5 or BERT") from error
        if not empty.mask.any():
            raise InputError(f"the tokenizer at {name} makes no token of the empty text: give mask false")
        self.width = empty.tokens.shape[2]

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTextEncoder:
        return self

    def check(self, captions: Sequence[str]) -> None:
        if not captions:
            return
        tokens = self._tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
        for caption, ids in zip(captions, tokens, strict=True):
            if len(ids) > self.max_length:
                raise too_long(caption, f"{len(ids)} tokens", self.max_length)

    @torch.no_grad()
    def forward(self, text: Tensor) -> Encoded:
        captions = to_captions(text)
        unique = list(dict.fromkeys(captions))
        if missing := [caption for caption in unique if caption not in self._kept]:
            for caption, *parts in zip(missing, *self._encode(missing, text.device), strict=True):
                self._kept[caption] = Encoded(*(part.clone() for part in parts))  # a view would keep the whole batch
        for caption in unique:
            self._kept[caption] = Encoded(*(part.to(text.device) for part in self._kept.pop(caption)))
        # Stacked anew each time, so that what a validation kept in inference mode can be trained with.
        encoded = Encoded(*map(torch.stack, zip(*(self._kept[caption] for caption in captions), strict=True)))
        while len(self._kept) > self.cache:
            self._kept.popitem(last=False)
        return encoded

    def _encode(self, captions: list[str], device: torch.device) -> Encoded:
        """What the encoder makes of texts."""
        batch = self._tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].bool().to(device)
        if not self.mask:
            mask = torch.ones_like(mask)
        with torch.autocast(device.type, enabled=False):
            output = self._frozen(device)(input_ids=ids, attention_mask=mask.long())
        tokens = output.last_hidden_state                                        # [B, N, D]
        if self.is_clip:
            return Encoded(tokens, mask, output.pooler_output)
        counting = tokens * mask[:, :, None]
        return Encoded(tokens, mask, counting.sum(1) / mask.sum(1, keepdim=True))


def load(name: str) -> tuple[Any, Any]:
    """The tokenizer and the encoder at a folder or a hub id, in float32; raises InputError if there is none."""
    from transformers import (
        MODEL_FOR_TEXT_ENCODING_MAPPING,
        AutoModel,
        AutoModelForTextEncoding,
        AutoTokenizer,
        CLIPTextModel,
    )

    config, folder, tokenizer_folder = find_config(name)
    if config.model_type in ("clip", CLIP_TEXT):
        cls: Any = CLIPTextModel
    elif type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        cls = AutoModelForTextEncoding
    elif config.is_encoder_decoder:
        raise InputError(f"{name} is a {config.model_type}, whose encoder does not stand alone: give CLIP, T5 or BERT")
    else:
        cls = AutoModel
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder=tokenizer_folder, **SAFELY)
        with quiet_report():
            model, info = cls.from_pretrained(name, subfolder=folder, output_loading_info=True, **SAFELY)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise absent(name, error) from error
    if tokenizer.pad_token is None:
        raise InputError(f"the tokenizer at {name} has no pad_token: give an encoder that can pad its texts")
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        raise InputError(f"the text encoder at {name} lacks weights, such as {missing[0]}: get it again")
    if cls is not CLIPTextModel and getattr(model, "pooler", None) is not None:
        model.pooler = None  # it was trained for something else, or is absent and then random
    return tokenizer, model.float()


def find_config(name: str) -> tuple[Any, str, str]:
    """An encoder's config, and the subfolders that hold it and its tokenizer; raises InputError if there is none."""
    from transformers import AutoConfig

    errors: list[Exception] = []
    for folder, tokenizer_folder in LAYOUTS:
        try:
            return AutoConfig.from_pretrained(name, subfolder=folder, **SAFELY), folder, tokenizer_folder
        except (OSError, ValueError, KeyError) as error:
            errors.append(error)
    raise absent(name, errors[0]) from errors[0]


def absent(name: str, error: Exception) -> InputError:
    """The error for a name with no encoder behind it."""
    reason = str(error).strip().splitlines()[0]
    return InputError(f"no text encoder at {name} ({reason}): give a folder or a model id")


def check_length(name: str, max_length: int | None, tokenizer: Any, model: Any) -> int:
    """Tokens of a text; raises InputError where the encoder has not so many positions."""
    told, places = tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)
    if max_length is None:
        return min(told if told < 10_000 else 128, places or 10_000)  # transformers says 1e30 where nothing is told
    least = tokenizer.num_special_tokens_to_add() + 1
    if not least <= max_length <= (places or max_length):
        limit = f"from {least} to {places}, the positions of {name}" if places else f"at least {least}"
        raise InputError(f"max_length of a text encoder must be {limit}: got {max_length}")
    return max_length


@contextmanager
def quiet_report() -> Iterator[None]:
    """Without transformers' table of weights that are not used: those of CLIP's half that sees images."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
