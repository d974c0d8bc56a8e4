"""generation_config.json: each field becomes a setting of the run, is neutral, or is named as not followed."""

import pytest

from lm.errors import UserError
from lm.huggingface.generation import NEUTRAL, STATED, TOKENS, generation_of
from tests.huggingface.models import MODELS
from tests.huggingface.peers import build, folder_of
from tests.huggingface.rows import imported

# As published with Llama 3.1, BART large CNN and opus-mt.
LLAMA = {"bos_token_id": 128000, "eos_token_id": [128001, 128008], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
BART = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_bos_token_id": 0}
BART |= {"forced_eos_token_id": 2, "early_stopping": True, "length_penalty": 2.0, "max_length": 142, "min_length": 56}
BART |= {"num_beams": 4, "no_repeat_ngram_size": 3, "transformers_version": "4.27.0"}
MARIAN = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 58100, "decoder_start_token_id": 58100}
MARIAN |= {"bad_words_ids": [[58100]], "forced_eos_token_id": 0, "max_length": 512, "num_beams": 4}
MARIAN |= {"renormalize_logits": True}


class Folder:
    source = "FOLDER"

    def __init__(self, generation_config=None, **config):
        self.generation_config, self.config = generation_config, config


def decoder(**values):
    return generation_of(Folder(values), "decoder", 512)


def pair(values, longest=1024):
    return generation_of(Folder(values), "encoder_decoder", longest)


def test_decoder_draws_tokens_as_published():
    settings, notes = decoder(**LLAMA)
    expected = {"temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0}
    assert settings == {f"sampling.{name}": value for name, value in expected.items()} and notes == ()


def test_decoder_is_greedy_without_do_sample():
    settings, notes = decoder(temperature=0.6, top_p=0.9, repetition_penalty=1.3, max_new_tokens=2048)
    assert settings == {"sampling.temperature": 0.0, "sampling.repetition_penalty": 1.3} and notes == ()


def test_beams_of_an_encoder_decoder():
    settings, notes = pair(BART)
    expected = {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram": 3, "min_new_tokens": 55, "exact": False}
    expected["max_new_tokens"] = 141
    assert settings == {f"generation.{name}": value for name, value in expected.items()}
    assert notes == ("ignored generation settings: early_stopping=True, forced_eos_token_id=2",)
    assert pair({**BART, "early_stopping": "never", "forced_eos_token_id": None})[0]["generation.exact"] is True
    assert pair({**BART, "max_new_tokens": 70, "min_new_tokens": 9})[0]["generation.max_new_tokens"] == 70
    assert pair({**BART, "max_length": 5000})[0]["generation.max_new_tokens"] == 1023


def test_excluding_tokens_that_are_never_chosen_is_followed():
    (note,) = pair(MARIAN)[1]
    assert "bad_words_ids" not in note and "renormalize_logits=True" in note
    (note,) = pair({**MARIAN, "bad_words_ids": [[58100], [7]]})[1]
    assert "bad_words_ids=[[58100], [7]]" in note
    assert "suppress_tokens=[5]" in decoder(suppress_tokens=[5])[1][0]
    assert "bad_words_ids" in decoder(pad_token_id=3, eos_token_id=3, bad_words_ids=[[3]])[1][0]  # pad is EOS


def test_older_folders_say_it_in_config_json():
    folder = Folder(None, d_model=512, num_beams=6, max_length=512, pad_token_id=1, bad_words_ids=[[1]])
    settings, notes = generation_of(folder, "encoder_decoder", 512)
    assert (settings["generation.num_beams"], settings["generation.max_new_tokens"], notes) == (6, 511, ())
    assert generation_of(Folder(None, d_model=512, eos_token_id=2), "decoder", 512) == ({}, ())


@pytest.mark.parametrize("change", [{"num_beams": 4}, {"typical_p": 0.9}, {"stop_strings": ["a"]}, {"new_field": 1}])
def test_what_a_decoder_lacks_is_named(change):
    (name,) = change
    assert name in decoder(**LLAMA, **change)[1][0]


def test_values_of_the_wrong_type_are_refused():
    with pytest.raises(UserError, match=r"FOLDER/generation_config.json: temperature='hot' is not a number"):
        decoder(do_sample=True, temperature="hot")


def test_every_field_of_transformers_is_known():
    import transformers

    assert vars(transformers.GenerationConfig()).keys() - TOKENS - NEUTRAL - STATED == set()


def test_import_puts_them_into_the_config_of_the_run():
    folder = folder_of(build(*MODELS["llama"]))
    before = imported(folder)[0].config
    assert before.eval.sampling.temperature == 1.0  # the folder says nothing about it
    folder.config |= {"do_sample": True, "temperature": 0.5, "num_beams": 2}
    published = imported(folder)[0]
    assert (published.config.eval.sampling.temperature, published.config.eval.sampling.top_k) == (0.5, 50)
    assert published.notes == ("ignored generation settings: num_beams=2",)
    two_sided = folder_of(build(*MODELS["t5"]))
    two_sided.config |= {"num_beams": 3, "length_penalty": 0.5, "max_length": 30}
    generation = imported(two_sided)[0].config.eval.generation
    assert (generation.num_beams, generation.length_penalty, generation.max_new_tokens) == (3, 0.5, 29)


def test_values_out_of_range_are_refused():
    folder = folder_of(build(*MODELS["t5"]))
    folder.config |= {"num_beams": 2, "length_penalty": 9.0}
    with pytest.raises(UserError, match=r"FOLDER: config\.eval\.generation\.length_penalty: 9.0 is above the largest"):
        imported(folder)
