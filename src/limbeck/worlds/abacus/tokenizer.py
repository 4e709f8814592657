"""The word-level tokenizer of abacus: words whole, numbers digit by digit, spaces kept, with a chat template.

A leading space belongs to its token (``" 12"`` is the two tokens ``" 1"`` and ``"2"``), so decoding gives
back the text exactly and the model sees where a number begins.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from limbeck.worlds.abacus.generator import CONTAINERS, ITEMS, ORDINALS, PHRASES

SPACE = "▁"
PIECE = rf"{SPACE}?[0-9]|{SPACE}?[A-Za-z]+|{SPACE}?[#]+|{SPACE}?[^A-Za-z0-9#{SPACE}]|{SPACE}"
PAD, EOS, UNK, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|unk|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}" + ASSISTANT + "{{ message['content'] }}" + EOS + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, special ones first, then the pieces of all phrases with and without a leading space."""
    words = ["A", "holds", "How", "many", "are", "there", "now", "Start", *ORDINALS, *CONTAINERS, *ITEMS]
    text = " ".join(words + [p.format(n="") for phrases in PHRASES.values() for p in phrases])
    pieces = [*sorted(set(re.findall(r"[A-Za-z]+", text))), *"0123456789", *"+-*/=.,?", "####"]
    return [PAD, EOS, UNK, USER, ASSISTANT, *pieces, *(SPACE + piece for piece in pieces), SPACE]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, from nothing but the generator's words.

    >>> tokenizer = build_tokenizer()
    >>> text = "14 - 5 = 9. #### 9"
    >>> tokenizer.convert_ids_to_tokens(tokenizer.encode(text))
    ['1', '4', '▁-', '▁5', '▁=', '▁9', '.', '▁####', '▁9']
    >>> tokenizer.decode(tokenizer.encode(text)) == text
    True
    """
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary())}, unk_token=UNK))
    core.normalizer = normalizers.Replace(" ", SPACE)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
