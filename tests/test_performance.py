"""The page of all measured speeds, made from records."""

import pytest

from benchmarks import performance

ORIGIN = {"hardware": "a machine", "commit": "abc1234", "versions": {"jax": "0.10.2", "optax": "0.2.8"}}


def system(seconds: float, peak: int) -> dict:
    return {"seconds_per_step": seconds, "peak_rss_bytes": peak, "first_seconds": 9.0}


STEPS = {
    "results": {
        "gpt, float32": {
            "title": "GPT, 10 M",
            "systems": {"ours": system(2.0, 3_000_000_000), "pytorch": system(1.5, 2_000_000_000)},
            **ORIGIN,
        },
        "gpt, bfloat16": {
            "title": "GPT, 10 M",
            "systems": {"ours": system(1.0, 3_000_000_000), "pytorch": system(1.2, 2_000_000_000)},
            **ORIGIN | {"commit": "def5678"},
        },
    }
}
DATA = {
    "results": {
        "tales": {
            "text": {"bytes": 5_000_000},
            "medians": {
                "sentencepiece, bpe": {"MB_per_second": 2.0},
                "store, bpe, 1": {"MB_per_second": 1.8},
                "store, bpe, 2": {"MB_per_second": 3.4},
                "causal 16 x 256": {"M_tokens_per_second": 21.0},
            },
            "ratio_to_sentencepiece": {"sentencepiece, bpe": 1.0, "store, bpe, 1": 0.9, "store, bpe, 2": 1.7},
        }
    },
    **ORIGIN,
}


def test_page_has_ratios_origins_and_what_is_missing():
    text = performance.page({"step_speed": STEPS, "data_speed": DATA}, True)
    assert "| GPT, 10 M | float32 | pytorch | 1,500 | 0.75 | 2.00 GB | 1.50 | 9.0 |" in text
    assert "Measured on a machine, commit abc1234, def5678, jax 0.10.2." in text
    assert "| store, bpe, 2 | 3.4 MB/s | 1.70 |" in text and "| causal 16 x 256 | 21.0 M tokens/s |  |" in text
    decoding = text.partition("## Decoding")[2].partition("## Data")[0]
    assert "Not measured yet." in decoding


def test_steps_on_a_gpu_have_shares_of_two_speeds():
    """20 TFLOP in 50 ms are 400 TFLOP/s; 32,768 tokens in 50 ms are 655,360 per second."""

    def each(seconds):
        return {"seconds_per_step": seconds, "peak_device_bytes": 12_300_000_000}

    result = {
        "title": "GPT-2",
        "tokens": 32_768,
        "flops": 20e12,
        "peak_flops_per_second": 1000e12,
        "product_flops_per_second": 800e12,
        "systems": {"ours": each(0.05), "nanogpt": each(0.06)},
        **ORIGIN,
    }
    record = {"results": {"gpt2": result}}
    text = performance.page({"gpu_speed": record}, False)
    assert "| GPT-2 | ours | 50.0 | 655,360 | 40% | 50% |  | 12.3 GB |" in text
    assert "| GPT-2 | nanogpt | 60.0 | 546,133 | 33% | 42% | 1.20 | 12.3 GB |" in text
    assert list(performance.gpu_ratios(record)) == [("step on a GPU, gpt2, nanogpt", pytest.approx(1.2))]
    result["peak_flops_per_second"] = None  # an unknown GPU
    assert "| GPT-2 | ours | 50.0 | 655,360 |  | 50% |  | 12.3 GB |" in performance.page({"gpu_speed": record}, False)


def test_ratios_of_the_picture():
    assert list(performance.step_ratios(STEPS)) == [
        ("step, gpt, float32, pytorch", 0.75),
        ("step, gpt, bfloat16, pytorch", 1.2),
    ]
    assert list(performance.data_ratios(DATA)) == [
        ("store, bpe, workers: 1, tales, SentencePiece alone", 0.9),
        ("store, bpe, workers: 2, tales, SentencePiece alone", 1.7),
    ]


@pytest.mark.exhaustive
def test_picture_is_drawn(tmp_path):
    performance.draw([("a", 0.5), ("b", 2.3)], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
