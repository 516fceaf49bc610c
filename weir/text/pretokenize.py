"""How byte-level tokenizers split text into words before merging, by `tokenizer.ggml.pre`.

The patterns come from the models' own tokenizer.json files; their names, and which models share a
pattern, from llama.cpp (src/llama-vocab.cpp). Each pattern splits all pieces that the one before
made.
"""
# ruff: noqa: RUF001 (the patterns are about such characters)

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pretokenizer:
    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token becomes that token without merging
    add_bos: bool = False  # unless the file says otherwise
    nfc: bool = False  # normalise text first, as the model's tokenizer.json does


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ"
    "-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹ"
    "ℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2, _SEED = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}{symbols}|"
    + _SPACES
    for digits, symbols in (("{1,3}", r"]+[\r\n]*"), ("", r"]+[\r\n]*"), ("", r"\r\n]+"))
)
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = rf"{_CAMEL[0]}|{_CAMEL[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_CAMEL[0]}{_CONTRACTION}?|{_CAMEL[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"

_FAMILIES = {
    "gpt-2 phi-2 olmo mpt jais trillion granite-docling exaone4 modern-bert mellum gigachat "
    "a.x-4.0 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe": (
        Pretokenizer((_GPT2,))
    ),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": (
        Pretokenizer((r"\p{N}", _GPT2))
    ),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": (
        Pretokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
    ),
    "dbrx smaug-bpe chatglm-bpe": Pretokenizer((_LLAMA3,)),
    "glm4": Pretokenizer((_LLAMA3,), ignore_merges=True),
    "qwen2 deepseek-r1-qwen": Pretokenizer((_QWEN2,), nfc=True),
    "megrez hunyuan stablelm2": Pretokenizer((_QWEN2,)),
    "qwen35": Pretokenizer((_QWEN35,), nfc=True),
    "tekken": Pretokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o llama4": Pretokenizer((_GPT4O,)),
    "seed-coder": Pretokenizer((_SEED,)),
    "falcon": Pretokenizer((_PUNCTUATION, _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-llm": (
        Pretokenizer(
            (
                "[\r\n]",
                rf"\s?[{_DEEPSEEK_LETTERS}]+",
                "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
                r"\s+$",
                "[一-龥ࠀ-一가-\ud7ff]+",
                r"\p{N}+",
            )
        )
    ),
    "deepseek-coder": (
        Pretokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"))
    ),
    "deepseek-v3 hunyuan-dense": Pretokenizer((r"\p{N}{1,3}", _CJK, _DEEPSEEK3)),
    "default": Pretokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}

PRETOKENIZERS = {name: how for names, how in _FAMILIES.items() for name in names.split()}
"""`tokenizer.ggml.pre` → how to split. "default" is for files older than that key."""
