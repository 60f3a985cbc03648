"""The Python face: `load` opens what a path or a name means, and writes what the command line writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny_transformer
from tiny_transformer import load
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.errors import UserError
from tiny_transformer.generation.loaded import LoadedModel
from tiny_transformer.generation.rows import generate_without_cache
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import complete
from tiny_transformer.models import build_model, save_model
from tiny_transformer.models.open import OpenCheckpoint, open_checkpoint
from tiny_transformer.tokenizers import make_tokenizer

SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
END = 7  # an id that ends a text, which the tokenizer does not know of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    tokenizer = make_tokenizer("byte")
    config = Qwen3Config(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, initializer_range=0.5, **SHAPE)
    save_model(build_model(config, seed=0), directory, eos_token_id=[tokenizer.end_id, END])
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="module")
def lm(checkpoint: Path) -> LoadedModel:
    return load(checkpoint, device="cpu")


def test_text_is_written_and_streamed_alike(lm):
    options = {"max_new_tokens": 30, "temperature": 1.2, "seed": 3}
    text = lm.generate("Once", **options)
    assert text and "".join(lm.stream("Once", **options)) == text
    settings = SamplingConfig(**options)
    assert [text] == complete(lm.model, lm.tokenizer, ["Once"], settings, lm.checkpoint.end_ids)
    assert lm.generate("Once", **options) == text != lm.generate("Once", **{**options, "seed": 4})


def test_a_list_gives_a_list_each_text_as_alone(lm):
    prompts = ["Once", "", "The little girl"]
    texts = lm.generate(prompts, max_new_tokens=20)
    assert texts == [lm.generate(prompt, max_new_tokens=20) for prompt in prompts]
    assert lm.generate(["Once"], max_new_tokens=5) == [lm.generate("Once", max_new_tokens=5)]
    assert lm.generate([]) == []


def test_an_end_id_of_the_files_ends_a_text(lm, checkpoint, tmp_path):
    assert lm.checkpoint.end_ids == (lm.tokenizer.end_id, END)
    options = {"temperature": 0, "max_new_tokens": 40}
    settings = SamplingConfig(**options)
    whole = generate_without_cache(lm.model, [lm.tokenizer.encode("Once")], settings)[0]
    shutil.copytree(checkpoint, tmp_path / "ends")
    (tmp_path / "ends" / "generation_config.json").write_text(json.dumps({"eos_token_id": whole[5]}))
    ends = load(tmp_path / "ends", device="cpu")
    expected = lm.tokenizer.decode(whole[: whole.index(whole[5])])
    assert ends.generate("Once", **options) == "".join(ends.stream("Once", **options)) == expected


def test_logits_are_the_models(lm):
    logits = lm.logits("Once")
    assert logits.shape == (4, lm.tokenizer.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(logits, lm.model(torch.tensor([lm.tokenizer.encode("Once")]))[0], rtol=0, atol=0)
    with pytest.raises(UserError, match="reads at most 64"):
        lm.logits("x" * 65)


def test_tokens_give_tokens_each_row_as_alone(lm):
    options = {"max_new_tokens": 12, "temperature": 1.3, "seed": 2}
    rows = [lm.tokenizer.encode(text) for text in ("Once", "The little girl", "x")]
    alone = [lm.generate(row, **options) for row in rows]
    assert alone == [generate_without_cache(lm.model, [row], SamplingConfig(**options), end_ids=lm.checkpoint.end_ids,
                                            num_tokens=lm.tokenizer.vocab_size)[0] for row in rows]  # fmt: skip
    assert lm.generate(rows, **options) == alone
    assert lm.generate(torch.tensor(rows[0]), **options) == alone[0]
    assert lm.generate(torch.tensor([rows[0]]), **options) == [alone[0]]
    assert lm.generate(tuple(rows[0]), **options) == alone[0]
    assert lm.tokenizer.decode(alone[1]) == lm.generate("The little girl", **options)


def test_tokens_that_cannot_be_are_refused(lm):
    for wrong in (torch.tensor(3), torch.zeros(2, 2), torch.tensor([True])):
        with pytest.raises(UserError, match="tokens are a tensor"):
            lm.generate(wrong)
    with pytest.raises(UserError, match="stop strings need a prompt that is text"):
        lm.generate([1, 2], stop="x")
    with pytest.raises(UserError, match="has no tokens"):
        lm.generate([[1], []])
    with pytest.raises(UserError, match="a text is needed"):
        lm.generate([1, True])


def test_the_words_of_older_projects_for_a_length(lm):
    assert (
        lm.generate("Once", max_length=5) == lm.generate("Once", max_tokens=5) == lm.generate("Once", max_new_tokens=5)
    )
    with pytest.raises(UserError, match="max_tokens and max_new_tokens are the same option"):
        lm.generate("Once", max_tokens=5, max_new_tokens=5)


@pytest.mark.parametrize("wrong", [3, None, b"Once", ["Once", 3]])
def test_what_is_no_text_is_refused_by_its_type(lm, wrong):
    calls = [lm.generate] if isinstance(wrong, list) else [lm.generate, lm.stream, lm.logits]
    for call in calls:
        with pytest.raises(UserError, match=r"a text is needed, and .* is of type"):
            list(call(wrong))


def test_an_unknown_option_is_refused_with_the_nearest(lm):
    for call in (lm.generate, lm.stream):
        with pytest.raises(UserError, match="no option temprature") as refused:
            call("Once", temprature=1.0)
        assert refused.value.remedy == "did you mean temperature?"
        with pytest.raises(UserError, match="no option x") as refused:
            call("Once", x=1)
        assert "max_new_tokens" in (refused.value.remedy or "")
        with pytest.raises(UserError, match="top_p = 2"):
            call("Once", top_p=2)


def test_a_run_is_loaded_by_name_and_the_newest_without(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "runs" / "demo" / "step-00000100")
    (tmp_path / "runs" / "demo" / "log.jsonl").write_text("")
    (tmp_path / "runs" / "demo" / "best").symlink_to("step-00000100")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="half-written checkpoint"):
        load("demo")
    shutil.copytree(checkpoint, tmp_path / "runs" / "theirs")
    assert repr(load("theirs", device="cpu")) == "<Qwen3ForCausalLM, using runs/theirs>"
    with pytest.raises(UserError, match="dem does not exist") as refused:
        load("dem")
    assert refused.value.remedy == "did you mean demo?"


def test_the_dtype_is_the_callers(checkpoint):
    assert load(checkpoint, device="cpu", dtype=torch.bfloat16).logits("Once").dtype == torch.bfloat16
    for wrong in ("bfloat16", 16):
        with pytest.raises(UserError, match=f"dtype = {wrong!r} is not possible"):
            load(checkpoint, device="cpu", dtype=wrong)  # ty: ignore[invalid-argument-type]


def test_a_number_of_drafts_without_a_drafter_is_refused(lm):
    for write in (lm.generate, lm.stream):
        with pytest.raises(UserError, match="nothing drafts"):
            write("Once", num_draft_tokens=3)


def test_a_story_is_the_prompt_and_what_is_written_after_it(lm, checkpoint):
    story = tiny_transformer.generate_story("Once", path=checkpoint, max_length=12, seed=2)
    assert story == "Once" + lm.generate("Once", max_new_tokens=12, seed=2) != "Once"
    with pytest.raises(UserError, match="of type list"):
        tiny_transformer.generate_story(["Once"], path=checkpoint)  # ty: ignore[invalid-argument-type]


def test_the_package_has_load_and_nothing_else_new():
    assert tiny_transformer.load is load
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = tiny_transformer.laod  # ty: ignore[unresolved-attribute]


# --- what an open checkpoint holds
# ---------------------------------------------------------------------------------------------------------------


def test_parts_are_read_when_they_are_asked_for(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    opened = open_checkpoint(tmp_path / "broken", device="cpu")
    assert opened.config.vocab_size == opened.model.config.vocab_size
    assert opened.run_config is None and opened.sentence == f"using {tmp_path / 'broken'}"
    with pytest.raises(UserError, match="not JSON"):
        _ = opened.tokenizer


def test_a_chat_template_is_found_in_its_file_or_in_the_tokenizers_config(checkpoint, tmp_path):
    assert OpenCheckpoint(checkpoint).template is None
    shutil.copytree(checkpoint, tmp_path / "chat")
    file, config = tmp_path / "chat" / "chat_template.jinja", tmp_path / "chat" / "tokenizer_config.json"
    for written, expected in (
        ("{{ a }}", "{{ a }}"),
        ([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tools", "template": "t"}], None),
        (3, None),
    ):
        config.write_text(json.dumps({"chat_template": written}))
        assert OpenCheckpoint(tmp_path / "chat").template == expected
    file.write_text("{{ é }}", encoding="utf-8")
    assert OpenCheckpoint(tmp_path / "chat").template == "{{ é }}"
    file.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        _ = OpenCheckpoint(tmp_path / "chat").template
