"""The decoder gives the model's own logits, however the tokens are fed, taken back, copied or begun anew."""

from __future__ import annotations

import pytest
import torch

from tiny_transformer.generation.decoder import Decoder, pad_right

CLOSE = {"rtol": 0, "atol": 1e-9}  # float64, logits of size 10
TEXTS = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3, 2], [30, 1, 30, 2, 30, 3, 30, 4]]


@torch.inference_mode()
def whole(model, text: list[int]) -> torch.Tensor:
    return model(torch.tensor([text]))[0]


def test_logits_of_all_new_tokens_and_of_the_last(model):
    decoder, lasts = Decoder(model, 3, 8), Decoder(model, 3, 8)
    done = [0, 0, 0]
    for counts in ((3, 1, 5), (1, 1, 1), (2, 4, 2)):
        parts = [text[n : n + k] for text, n, k in zip(TEXTS, done, counts, strict=True)]
        logits, last = decoder.feed(parts), lasts.feed_last(parts)
        for row, (text, n, k) in enumerate(zip(TEXTS, done, counts, strict=True)):
            expected = whole(model, text[: n + k])
            torch.testing.assert_close(logits[row, :k], expected[n:], **CLOSE)
            torch.testing.assert_close(last[row], expected[-1], **CLOSE)
        done = [n + k for n, k in zip(done, counts, strict=True)]
    assert decoder.cache.lengths == done
    assert decoder.hidden.shape == (3, 4, 32)


def test_a_tensor_is_fed_as_it_is_and_high_ids_are_left_out(model):
    decoder = Decoder(model, 3, 8, num_tokens=35)
    logits = decoder.feed(torch.tensor(TEXTS))
    torch.testing.assert_close(logits[1], whole(model, TEXTS[1])[:, :35], **CLOSE)


def test_tokens_are_taken_back_by_row(model):
    decoder = Decoder(model, 3, 8)
    decoder.feed([text[:3] for text in TEXTS])
    decoder.snapshot()
    decoder.feed([TEXTS[0][3:5], [30, 30], [TEXTS[2][3], 9]])
    decoder.rollback([2, 0, 1])
    logits = decoder.feed([TEXTS[0][5:], TEXTS[1][3:], TEXTS[2][4:]])
    for row, n in enumerate((5, 3, 4)):
        torch.testing.assert_close(logits[row, : 8 - n], whole(model, TEXTS[row])[n:], **CLOSE)


def test_rows_are_emptied_chosen_and_copied(model):
    decoder = Decoder(model, 3, 8)
    decoder.feed([text[:4] for text in TEXTS])
    decoder.reset([1])
    decoder.feed([[TEXTS[0][4]], TEXTS[2][:3], [TEXTS[2][4]]])
    decoder.select([2, 1, 1, 0])
    logits = decoder.feed_last([TEXTS[2][5:], TEXTS[2][3:4], TEXTS[2][3:6], TEXTS[0][5:7]])
    for row, text in enumerate((TEXTS[2], TEXTS[2][:4], TEXTS[2][:6], TEXTS[0][:7])):
        torch.testing.assert_close(logits[row], whole(model, text)[-1], **CLOSE)


def test_what_does_not_fit_is_refused(qwen3):
    decoder = Decoder(qwen3, 2, 4)
    decoder.feed([[1, 2, 3], [1]])
    with pytest.raises(ValueError, match="5 tokens do not fit into a cache made for 4"):
        decoder.feed([[4, 5], [2, 3]])
    decoder.feed([[4], [2, 3]])
    with pytest.raises(ValueError, match="1 rows given to a cache made for 2"):
        decoder.feed(torch.tensor([[1]]))


def test_rows_are_padded_on_the_right():
    input_ids, doc_ids, last = pad_right([[5, 6, 7], [8], []], torch.device("cpu"))
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    assert doc_ids is not None and doc_ids.tolist() == [[0, 0, 0], [0, -1, -1], [-1, -1, -1]]
    assert last is not None and last.tolist() == [2, 0, 0]
    assert pad_right([[1, 2], [3, 4]], torch.device("cpu"))[1:] == (None, None)
