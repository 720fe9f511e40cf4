"""Texts that tokenizers disagree on, and where the real tokenizers lie."""

import pathlib

SHARED = pathlib.Path(__file__).parents[2] / ".." / "shared"
T5 = SHARED / "tokenizers" / "t5.spiece.model"

STRESS = (
    "",
    " ",
    "\n\n",
    "a",
    "She\n\n\n  had\t two  cups.\n",
    "# Title\n\n**bold** and `code`\n\n- one\n- two\n\n\\boxed{\\frac{1}{2}}",
    "½ of ¾ is ⅜, ﬁne ﬂour, x² and 10⁻³",
    "emoji 🎉🎊👨‍👩‍👧 and 🇨🇭 flags",
    "한국어 문장과 中文句子 混合 text。",
    "{'a': [1, 2, {'b': ~3}]} ^ \\ <tag>",
    "e\u0301\u0308 zalgo n\u0303",
    "non\u00a0breaking\u2003wide\u3000ideographic\u200bzero",
    "$1,200.50 + 12*2=24 1200 0.001 1e-5",
    "def f(x):\n    if x:\n        return x\n\n\n\tpass\n",
    "</s> <extra_id_0> <pad> <|endoftext|> token_id:5 bytes:\\xf0",
    "a\x00b\x07c\x7f",
    "▁already ▁▁marked Ġhere",
)
