"""Small folders with the tokenizer files of published families. All tokenize bytes; only special tokens differ."""

import json
from dataclasses import dataclass, field

import tokenizers as library

from lm.config import TokenizerConfig
from lm.data.tokenizing import build_tokenizer


def template(single, pair, **ids):
    """Returns a TemplateProcessing step with special tokens `ids`."""
    return library.processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))


@dataclass
class Family:
    """The files of a family. `special` are added tokens, numbered from 0; `ordinary` are pieces of the vocabulary."""

    special: list
    processor: object = None
    names: dict | None = None
    generation: dict | None = None
    ordinary: list = field(default_factory=list)

    def write(self, folder):
        pieces = [*self.special, *sorted(library.pre_tokenizers.ByteLevel.alphabet())]
        merges = []
        for piece in self.ordinary:  # "<s>" is merged from "<s" and ">"
            for end in range(2, len(piece) + 1):
                pieces.append(piece[:end])
                merges.append((piece[: end - 1], piece[end - 1]))
        model = library.models.BPE({piece: i for i, piece in enumerate(pieces)}, merges)
        tokenizer = library.Tokenizer(model)
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        tokenizer.add_special_tokens(self.special)
        if self.processor is not None:
            tokenizer.post_processor = self.processor
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        if self.names is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(self.names))
        if self.generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(self.generation))
        return folder

    def load(self, folder, **settings):
        path = self.write(folder) / "tokenizer.json"
        return build_tokenizer(TokenizerConfig(kind="huggingface", path=str(path), **settings), [])


def byte_level():
    return library.processors.ByteLevel(trim_offsets=False)


FAMILIES = {
    "bert": Family(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        template("[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", **{"[CLS]": 2, "[SEP]": 3}),
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
    ),
    "old_bert": Family(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], library.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    ),
    "roberta": Family(
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        library.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False),
        {
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "</s>"},
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "bart": Family(
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        library.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False),
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"},
        {"bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_bos_token_id": 0},
    ),
    "t5": Family(
        ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"],
        template("$A:0 </s>:0", "$A:0 </s>:0 $B:0 </s>:0", **{"</s>": 1}),
        {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    ),
    "nllb": Family(
        ["<s>", "<pad>", "</s>", "eng_Latn", "deu_Latn"],
        template("eng_Latn:0 $A:0 </s>:0", "eng_Latn:0 $A:0 $B:0 </s>:0", **{"eng_Latn": 3, "</s>": 2}),
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        {"eos_token_id": 2, "decoder_start_token_id": 2, "forced_bos_token_id": 4},
    ),
    "gpt2": Family(["<|endoftext|>"], byte_level(), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, {}),
    "qwen": Family(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        byte_level(),
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False},
        {"bos_token_id": 0, "eos_token_id": [2, 0]},
        ["<s>", "</s>", "<pad>", "<mask>"],
    ),
    "smollm2": Family(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        byte_level(),
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama3": Family(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        library.processors.Sequence(
            [
                byte_level(),
                template(
                    "<|begin_of_text|>:0 $A:0",
                    "<|begin_of_text|>:0 $A:0 <|begin_of_text|>:1 $B:1",
                    **{"<|begin_of_text|>": 0},
                ),
            ]
        ),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        {"eos_token_id": [1, 2, 3]},
    ),
    "gemma": Family(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"],
        template("<bos>:0 $A:0", "<bos>:0 $A:0 <bos>:1 $B:1", **{"<bos>": 2}),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "add_bos_token": True},
        {"eos_token_id": [1, 4]},
        ["<s>", "</s>", "<mask>"],
    ),
}
