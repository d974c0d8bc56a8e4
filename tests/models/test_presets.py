import math

import jax
import pytest

from lm.config import Config, defaults, source
from lm.errors import UserError
from lm.huggingface.exporting import mismatches, resolved
from lm.huggingface.families import FAMILIES
from lm.models import build_model
from lm.models.presets import PRESETS, preset
from lm.tasks import task_of

PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "gpt2_350m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "stories260k": 260_032,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama3_1b": 1_235_814_400,
    "transformer_base": 44_138_496,
    "transformer_big": 176_357_376,
    "transformer_tiny": 1_325_056,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    # Published: 139,420,416 and 406,291,456, including 2 x 2 extra positions.
    "bart_base": 139_420_416 - 4 * 768,
    "bart_large": 406_291_456 - 4 * 1024,
    # Including the masked-token head, as counted by transformers.
    "bert_tiny": 4_416_698,
    "bert_mini": 11_201_594,
    "bert_small": 28_795_194,
    "bert_medium": 41_404_730,
    "bert_base": 109_514_298,
    "bert_large": 335_174_458,
    # Published: 124,697,433 and 355,412,057, including two extra positions and one extra token type.
    "roberta_base": 124_697_433 - 3 * 768,
    "roberta_large": 355_412_057 - 3 * 1024,
    # Published: 149,655,232 and 395,881,664, without the unused norm of the first layer.
    "modernbert_base": 149_655_232 + 768,
    "modernbert_large": 395_881_664 + 1024,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    config = defaults()
    config.data.train.docs = source(kind="embedded")
    config.model.update(preset(name))
    if config.model.family == "encoder_decoder":
        config.objective.name = "prefix_lm"
    if config.model.family == "encoder":
        config.objective.name = "masked"
        config.data.tokenizer.extra_ids = 1
    vocab_size = config.model.vocab_size = config.model.vocab_size or 1
    resolved = Config.from_dict(config.to_dict())
    model = build_model(resolved.model, task_of(resolved).head(resolved))
    params = jax.eval_shape(lambda key: model.initial_params(key), jax.random.key(0))
    found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    # Presets without a vocabulary size are counted without the embedding.
    assert found - (config.model.d_model if vocab_size == 1 else 0) == PUBLISHED[name]


# Only with interleaved rotary positions or no type of tokens, which the published classes do not have.
UNPUBLISHED = ("stories260k", "roberta_base", "roberta_large")
FAMILY_OF = {"llama2": "llama", "llama3": "llama", "transformer": "marian"}


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in UNPUBLISHED])
def test_a_published_family_can_express_a_preset(name):
    """So the settings that the family does not read from config.json are those of the published class."""
    family = name.split("_")[0]
    values = preset(name)
    model = resolved({**values, "vocab_size": values.get("vocab_size") or 1})
    assert mismatches(FAMILIES[FAMILY_OF.get(family, family)], model, {}) == []


def test_a_preset_is_a_copy():
    preset("gpt2_124m")["num_layers"] = 1
    assert preset("gpt2_124m")["num_layers"] == 12


def test_a_mistyped_name_is_refused_with_the_nearest_names():
    with pytest.raises(UserError, match="did you mean gpt2_124m"):
        preset("gpt2_124")
    with pytest.raises(UserError, match="llama3_8b"):
        preset("zzz")
