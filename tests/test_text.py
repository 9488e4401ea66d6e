"""Texts: what the encoders make of them is transformers' own, and null is the empty text."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles import stir, tiny_clip
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab import DiffusionModule, InputError, PixelSpace, TableSchedule, UNet
from diffusion_lab.conditions import Text
from diffusion_lab.configurable import build
from diffusion_lab.networks.frozen_text import FrozenTextEncoder
from diffusion_lab.networks.text import ByteTransformer, TextEncoder, cut, to_bytes, to_captions

CAPTIONS = ["a cat", "", "two dogs and a bird", "a cat"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = {
    word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "two", "dogs", "and", "bird"])
}


def save_tokenizer(folder: Path, ends: str) -> None:
    """Words by spaces, with what stands around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=ends, special_tokens=[(word, WORDS[word]) for word in ("[CLS]", "[SEP]") if word in ends]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=12
    ).save_pretrained(folder)


def save_bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=10, max_position_embeddings=16, **SIZES)).save_pretrained(folder)
    save_tokenizer(folder, "[CLS] $A [SEP]")


def save_t5(folder: Path) -> None:
    """The whole of it, decoder too."""
    from transformers import T5Config, T5Model

    torch.manual_seed(0)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    T5Model(T5Config(vocab_size=10, decoder_start_token_id=0, **size)).save_pretrained(folder)
    save_tokenizer(folder, "$A [SEP]")


def save_diffusers(folder: Path) -> None:
    """A CLIP as diffusers lays it out."""
    from transformers import CLIPTextModel, CLIPTokenizer

    whole = folder.with_name("whole_clip")
    tiny_clip(whole)
    CLIPTextModel.from_pretrained(whole).save_pretrained(folder / "text_encoder")
    CLIPTokenizer.from_pretrained(whole, model_max_length=20).save_pretrained(folder / "tokenizer")


SAVERS: dict[str, Callable[[Path], None]] = {"clip": tiny_clip, "bert": save_bert, "t5": save_t5, "diffusers": save_diffusers}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An encoder of random weights of each kind."""
    root = tmp_path_factory.mktemp("encoders")
    for name, save in SAVERS.items():
        save(root / name)
    return {name: str(root / name) for name in SAVERS}


@pytest.fixture
def bert(folders: dict[str, str]) -> FrozenTextEncoder:
    return FrozenTextEncoder(folders["bert"])


def byte_transformer(**options: int) -> ByteTransformer:
    """One whose tokens differ with everything."""
    encoder = ByteTransformer(**{"width": 16, "depth": 2, "heads": 2, "max_length": 24, **options})
    for weight in encoder.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.3)
    return encoder


def expected(name: str, folder: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and pooled vector by transformers, each text alone and without padding, then padded with zeros."""
    from transformers import AutoTokenizer, BertModel, CLIPTextModel, T5EncoderModel

    cls = {"clip": CLIPTextModel, "diffusers": CLIPTextModel, "bert": BertModel, "t5": T5EncoderModel}[name]
    subfolders = ("text_encoder", "tokenizer") if name == "diffusers" else ("", "")
    model = cls.from_pretrained(folder, subfolder=subfolders[0]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder=subfolders[1])
    length = 12 if name in ("bert", "t5") else 20
    tokens, mask, pooled = torch.zeros(len(CAPTIONS), length, 16), torch.zeros(len(CAPTIONS), length), []
    for i, caption in enumerate(CAPTIONS):
        ids = tokenizer(caption, return_tensors="pt").input_ids
        with torch.no_grad():
            output = model(input_ids=ids)
        tokens[i, : ids.shape[1]], mask[i, : ids.shape[1]] = output.last_hidden_state[0], 1
        pooled.append(output.pooler_output[0] if cls is CLIPTextModel else output.last_hidden_state[0].mean(0))
    return tokens, mask.bool(), torch.stack(pooled)


@pytest.mark.parametrize("name", SAVERS)
def test_a_frozen_encoder_gives_what_transformers_gives(name: str, folders: dict[str, str]) -> None:
    tokens, mask, pooled = expected(name, folders[name])
    encoder = FrozenTextEncoder(folders[name])
    found = encoder(to_bytes(CAPTIONS))
    assert encoder.width == 16
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.tokens * mask[:, :, None], tokens)
    torch.testing.assert_close(found.pooled, pooled)


def test_without_a_mask_padding_counts_as_in_stable_diffusion_1(folders: dict[str, str]) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    ids = CLIPTokenizer.from_pretrained(folders["clip"])(
        CAPTIONS, padding="max_length", max_length=20, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        tokens = CLIPTextModel.from_pretrained(folders["clip"])(input_ids=ids).last_hidden_state
    found = FrozenTextEncoder(folders["clip"], mask=False)(to_bytes(CAPTIONS))
    torch.testing.assert_close(found.tokens, tokens)
    assert found.mask.all()


def test_each_text_is_encoded_once(bert: FrozenTextEncoder) -> None:
    seen: list[int] = []
    bert._frozen("cpu").register_forward_hook(lambda model, args, output: seen.append(len(output.last_hidden_state)))
    first = bert(to_bytes(CAPTIONS))
    assert seen == [2], "the empty text was encoded when it was made, and a text twice in a batch counts once"
    again = bert(to_bytes(CAPTIONS[::-1]))
    assert seen == [2]
    assert torch.equal(again.tokens, first.tokens.flip(0))
    bert.cache = 2  # the least recently used go first
    bert(to_bytes(["a", "cat"]))
    bert(to_bytes(["a"]))
    bert(to_bytes(["two"]))
    seen.clear()
    bert(to_bytes(["a", "two"]))
    assert seen == []
    bert(to_bytes(["cat"]))
    assert seen == [1]


def test_other_texts_of_a_batch_make_no_difference(folders: dict[str, str]) -> None:
    alone = FrozenTextEncoder(folders["bert"], cache=0)(to_bytes(CAPTIONS[:1]))
    among = FrozenTextEncoder(folders["bert"], cache=0)(to_bytes(CAPTIONS))
    torch.testing.assert_close(among.tokens[:1], alone.tokens)
    assert alone.tokens.shape[1] == among.tokens.shape[1], "of a fixed length"


def test_what_inference_cached_can_be_trained_with(bert: FrozenTextEncoder) -> None:
    text = Text(bert, 8)
    drop = torch.zeros(1, dtype=torch.bool)
    with torch.inference_mode():
        text(["a cat"], drop)
    embed = text(["a cat"], drop).embed
    assert embed is not None
    embed.sum().backward()
    assert text.projection is not None
    assert text.projection.weight.grad is not None


def test_the_precision_around_it_makes_no_difference(bert: FrozenTextEncoder) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = bert(to_bytes(["two dogs"]))
    bert._kept.clear()
    assert torch.equal(found.tokens, bert(to_bytes(["two dogs"])).tokens)


def test_a_frozen_encoder_is_registered_nowhere(bert: FrozenTextEncoder) -> None:
    text = Text(bert, 8)
    assert list(text.state_dict()) == ["projection.weight", "projection.bias"]
    assert len(list(text.parameters())) == 2
    copied = copy.deepcopy(text)
    assert copied.encoder is bert
    assert copied.projection is not text.projection
    assert not any(weight.requires_grad for weight in bert._frozen("cpu").parameters())
    text.train()
    assert not bert._frozen("cpu").training


def test_a_checkpoint_refuses_other_weights(folders: dict[str, str], tmp_path: Path) -> None:
    from transformers import BertModel

    config = Text(FrozenTextEncoder(folders["bert"]), 8).config
    again = build(config)
    assert again.encoder.config == FrozenTextEncoder(folders["bert"]).config
    save_bert(tmp_path / "other")
    model = BertModel.from_pretrained(tmp_path / "other")
    model.embeddings.word_embeddings.weight.data[4, 0] += 1e-3
    model.save_pretrained(tmp_path / "other")
    config["init_args"]["encoder"]["init_args"]["name"] = str(tmp_path / "other")
    with pytest.raises(
        InputError, match=r"other has weights of SHA-256 \w+, not \w+: give the folder or the id of those"
    ):
        build(config)


def test_a_pooling_layer_that_was_never_trained_is_no_part_of_it(folders: dict[str, str], tmp_path: Path) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(folders["bert"], add_pooling_layer=False).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "[CLS] $A [SEP]")
    digests = {
        FrozenTextEncoder(str(path)).config["init_args"]["digest"] for path in (tmp_path, tmp_path, folders["bert"])
    }
    assert len(digests) == 1


def test_an_encoder_that_lacks_weights_or_is_truncated_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import BertModel

    BertModel.from_pretrained(folders["bert"]).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "[CLS] $A [SEP]")
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.0.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks weights, such as encoder.layer.0.output.dense.weight: get it again"):
        FrozenTextEncoder(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="no text encoder at "):
        FrozenTextEncoder(str(tmp_path))


def test_what_is_no_text_encoder_is_refused_in_one_line(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from transformers import BartConfig, BartModel, ViTConfig, ViTModel

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # it would try again and again
    BartModel(BartConfig(vocab_size=10, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)).save_pretrained(tmp_path / "bart")  # fmt: skip
    ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES)).save_pretrained(tmp_path / "vit")
    for folder in ("bart", "vit"):
        save_tokenizer(tmp_path / folder, "[CLS] $A [SEP]")
    save_bert(tmp_path / "bare")
    save_tokenizer(tmp_path / "bare", "$A")
    for name, message in {
        str(tmp_path / "nothing"): "no text encoder at .*nothing .*: give a folder or a model id",
        "someone/absent": "no text encoder at someone/absent",
        str(tmp_path): "no text encoder at ",
        str(tmp_path / "bart"): "is a bart, whose encoder does not stand alone",
        str(tmp_path / "vit"): "is no encoder of texts but a ViTModel",
        str(tmp_path / "bare"): "makes no token of the empty text: give mask false",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            FrozenTextEncoder(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="must be from 3 to 16, the positions of .*: got 17"):
        FrozenTextEncoder(folders["bert"], max_length=17)
    with pytest.raises(InputError, match="must be at least 2: got 1"):
        FrozenTextEncoder(folders["t5"], max_length=1)
    with pytest.raises(InputError, match="cache.* must be at least 0: got -1"):
        FrozenTextEncoder(folders["bert"], cache=-1)


def test_bytes_to_the_encoder_are_those_of_utf_8() -> None:
    text = to_bytes(["añ", "", "abcd"])
    assert text.dtype == torch.uint8
    assert text.tolist() == [[97, 0xC3, 0xB1, 0], [0, 0, 0, 0], [97, 98, 99, 100]]
    assert to_captions(text) == ["añ", "", "abcd"]
    assert to_bytes([]).shape[0] == 0
    assert to_captions(to_bytes(["", ""])) == ["", ""]


@pytest.mark.parametrize("length", range(1, 16))
def test_a_cut_leaves_whole_characters(length: int) -> None:
    """The longest prefix that is UTF-8, as the standard library decodes it."""
    captions = ["añ€😀b€😀", "plain ascii letters", "😀😀😀😀", "ab"]
    assert to_captions(cut(to_bytes(captions), length)) == [
        caption.encode()[:length].decode(errors="ignore") for caption in captions
    ]


def test_a_byte_transformer_has_a_token_for_the_empty_text_and_a_fixed_length() -> None:
    encoder = byte_transformer()
    tokens, mask, pooled = encoder(to_bytes(["", "ab", "x" * 24]))
    assert tokens.shape == (3, 25, 16)
    assert mask.sum(1).tolist() == [1, 3, 25]
    assert torch.equal(pooled, tokens[:, 0])
    assert tokens.isfinite().all()


def test_a_byte_transformer_sees_every_byte_and_no_padding() -> None:
    encoder = byte_transformer()
    texts = ["abcd", "abce", "xbcd", "bacd", "abc"]
    pooled = encoder(to_bytes(texts)).pooled
    assert torch.pdist(pooled).min() > 1e-3
    wide = F.pad(to_bytes(texts), (0, 40))
    torch.testing.assert_close(encoder(wide).pooled, pooled)
    alone = torch.cat([encoder(to_bytes([text])).pooled for text in texts])
    torch.testing.assert_close(alone, pooled)
    torch.testing.assert_close(encoder(wide.long()).pooled, pooled)


def test_a_byte_transformer_is_a_pre_norm_encoder() -> None:
    """Against torch's own, with the same weights."""
    encoder = byte_transformer(depth=1)
    theirs = nn.TransformerEncoderLayer(16, 2, 64, 0.0, F.gelu, batch_first=True, norm_first=True)
    block = encoder.blocks[0]
    attention = block.attention
    state = {
        "self_attn.in_proj_weight": torch.cat([attention.q.weight, attention.kv.weight]),
        "self_attn.in_proj_bias": torch.zeros(48),
        "self_attn.out_proj.weight": attention.out.weight,
        "self_attn.out_proj.bias": attention.out.bias,
        **{
            f"linear{n}.{part}": getattr(block.mlp[i], part) for n, i in ((1, 0), (2, 2)) for part in ("weight", "bias")
        },
        **{f"norm{n}.{part}": getattr(getattr(block, f"norm{n}"), part) for n in (1, 2) for part in ("weight", "bias")},
    }
    theirs.load_state_dict(state)
    text = to_bytes(["abc", "", "a longer one"])
    ids = torch.cat([torch.full((3, 1), 256), F.pad(text, (0, 24 - text.shape[1])).long()], 1)
    hidden = theirs(encoder.embedding(ids) + encoder.positions, src_key_padding_mask=ids == 0)
    found = encoder(text)
    torch.testing.assert_close(found.tokens[found.mask], encoder.norm(hidden)[ids != 0])


def test_a_byte_transformer_compiles_whole() -> None:
    encoder = byte_transformer()
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    text = to_bytes(["abc", "x" * 40])
    assert torch.equal(compiled(text).tokens, encoder(text).tokens)


def encoders(folders: dict[str, str]) -> list[TextEncoder]:
    return [byte_transformer(), FrozenTextEncoder(folders["bert"])]


def test_dropping_is_the_empty_text_sample_by_sample(folders: dict[str, str]) -> None:
    drop = torch.tensor([False, True, True, False])
    for encoder in encoders(folders):
        text = Text(encoder, 8)
        mixed = text(text.prepare(CAPTIONS), drop)
        plain = text(text.prepare([CAPTIONS[0], "", "", CAPTIONS[3]]), torch.zeros(4, dtype=torch.bool))
        null = text(text.prepare(["a", "cat", "two", "dogs"]), torch.ones(4, dtype=torch.bool))
        for (_, one), (_, other), (_, dropped) in zip(mixed.parts(), plain.parts(), null.parts(), strict=True):
            if one is None or other is None or dropped is None:
                assert one is other is dropped
                continue
            torch.testing.assert_close(one, other)
            torch.testing.assert_close(one[1], dropped[0])
        assert mixed.mask is not None
        assert mixed.mask.sum(1)[1] == mixed.mask.sum(1).min(), "the empty text has the fewest tokens"
        assert mixed.context is not None
        assert mixed.context.shape[2] == text.context_dim == 16
        assert (mixed.context[0] - mixed.context[1]).abs().max() > 1e-3


def test_a_text_is_given_by_strings_or_by_bytes(folders: dict[str, str]) -> None:
    drop = torch.zeros(4, dtype=torch.bool)
    for encoder in encoders(folders):
        text = Text(encoder)
        prepared = text.prepare(CAPTIONS)
        assert torch.equal(text.prepare(prepared), prepared)
        assert text.prepare(tuple(CAPTIONS)).equal(prepared)
        one, other = text(prepared, drop), text(CAPTIONS, drop)
        assert one.context is not None
        assert other.context is not None
        assert torch.equal(one.context, other.context)
        assert one.embed is None
        assert text.embed_dim is None


def test_every_weight_of_a_byte_transformer_learns() -> None:
    text = Text(byte_transformer(), 8)
    cond = text(text.prepare(["a cat", "two"]), torch.tensor([False, True]))
    assert cond.context is not None
    assert cond.embed is not None
    (cond.context.square().sum() + cond.embed.square().sum()).backward()
    without = [name for name, weight in text.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_config_builds_the_same(folders: dict[str, str]) -> None:
    for encoder in encoders(folders):
        text = Text(encoder, 8, truncate=True)
        again = build(text.config)
        assert again.truncate
        again.load_state_dict(text.state_dict())
        drop = torch.tensor([False, True, False, False])
        for (_, one), (_, other) in zip(text(CAPTIONS, drop).parts(), again(CAPTIONS, drop).parts(), strict=True):
            if one is None or other is None:
                assert one is other
                continue
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_text_that_is_too_long_is_refused_or_cut(folders: dict[str, str]) -> None:
    words = " ".join(["cat"] * 11)
    drop = torch.zeros(1, dtype=torch.bool)
    for encoder, caption, kept, message in (
        (
            FrozenTextEncoder(folders["bert"]),
            words,
            words[:39],
            r"'cat cat .*\.\.\.' has 13 tokens and the encoder reads 12",
        ),
        (byte_transformer(), "é" * 13, "é" * 12, "the text 'é+' has 26 bytes and the encoder reads 24"),
        (byte_transformer(max_length=23), "é" * 12, "é" * 11, "has 24 bytes and the encoder reads 23"),
    ):
        for values in (["a", caption], to_bytes(["a", caption])):
            with pytest.raises(InputError, match=f"{message}: shorten it, or give truncate true"):
                Text(encoder).prepare(values)
        with pytest.raises(InputError, match=message):
            Text(encoder)([caption], drop)
        assert Text(encoder).prepare([kept]).any()
        text = Text(encoder, truncate=True)
        for values in ([caption], text.prepare([caption])):
            found, wanted = text(values, drop), text([kept], drop)
            assert found.context is not None
            assert wanted.context is not None
            torch.testing.assert_close(found.context, wanted.context)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("a cat", r"texts must be a list: give \['a cat'\], or one for each image"),
        (["a", 3], "texts must be a list of strings: got 3"),
        (3, "texts must be a list of strings: got 3"),
        (["a\0b"], "holds a NUL, which ends a text: leave it out"),
        (["a\ud800"], "is no Unicode .*: correct it"),
        (torch.zeros(2, 3), r"must be UTF-8, uint8 \[N, length\]: got float32 \[2, 3\]"),
        (torch.zeros(3, dtype=torch.uint8), r"got uint8 \[3\]"),
        (torch.tensor([[97, 0], [0xC3, 0]], dtype=torch.uint8), "text 1 is no UTF-8 .*: give strings"),
        (torch.tensor([[97, 0, 98]], dtype=torch.uint8), "text 0 has a zero before its end"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Text(byte_transformer()).prepare(values)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_bad_sizes_of_a_byte_transformer() -> None:
    with pytest.raises(InputError, match="must be at least 1: got 16, 0, 2 and 24"):
        byte_transformer(depth=0)
    with pytest.raises(InputError, match="heads must divide the text encoder's width, 16: got 3"):
        byte_transformer(heads=3)


def test_a_module_holds_nothing_of_a_frozen_encoder_and_samples_with_it(bert: FrozenTextEncoder) -> None:
    network = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), embed_dim=16, context_dim=16)
    stir(network)
    module = DiffusionModule(network, TableSchedule(), PixelSpace([1, 8, 8]), conditions={"text": Text(bert, 16)})
    assert not [key for key in module.state_dict() if "encoder" in key]
    averaged = module.ema.copies["conditions"].conditioners["text"]  # type: ignore[index, union-attr]
    assert averaged.encoder is bert
    options = {"num_images": None, "steps": 2, "guidance_scale": 3.0}
    images = module.sample({"text": ["a cat", "two dogs"]}, **options)  # type: ignore[arg-type]
    other = module.sample({"text": ["a cat", "a bird"]}, **options)  # type: ignore[arg-type]
    assert torch.equal(images[0], other[0])
    assert not torch.equal(images[1], other[1])
    apart = module.sample({"text": ["a cat", "two dogs"]}, negative={"text": "a bird"}, **options)  # type: ignore[arg-type]
    assert not torch.equal(images, apart)
