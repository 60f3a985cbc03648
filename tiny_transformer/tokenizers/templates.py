"""The chat templates: each a Python function beside the Jinja text that other programs read.

Both write the same conversation; tests render each with both and compare the ids. A template takes a conversation as
`data.chat.records` gives it: perhaps a system message, then user and assistant in turn, no blanks around a text.
"""

from __future__ import annotations

from collections.abc import Sequence

from tiny_transformer.errors import UserError
from tiny_transformer.tokenizers.chat import ChatTemplate, Marks, Message, Segment
from tiny_transformer.tokenizers.tokenizer import Tokenizer

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
BEGIN_TEXT, START_HEADER, END_HEADER, END_TURN = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
NO_THOUGHT = "<think>\n\n</think>\n\n"
TITLES = {"user": "### Instruction:\n", "assistant": "### Response:\n"}


def control(token: str, *, is_trained: bool = False) -> Segment:
    """A control token as a segment."""
    return Segment(token, is_control=True, is_trained=is_trained)


# --- ChatML: <|im_start|>role, the text, <|im_end|>


def _chatml_opening(marks: Marks) -> list[Segment]:
    return [control(IM_START), Segment("assistant\n")]


def _chatml_turn(messages: Sequence[Message], i: int, marks: Marks) -> list[Segment]:
    role, content = messages[i]
    return _between_im(role, content, is_trained=role == "assistant")


def _between_im(role: str, content: str, *, is_trained: bool) -> list[Segment]:
    return [
        control(IM_START),
        Segment(f"{role}\n"),
        Segment(content, is_trained=is_trained),
        control(IM_END, is_trained=is_trained),
        Segment("\n"),
    ]


def _chatml_jinja(marks: Marks) -> str:
    return (
        "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
    )


# --- Qwen3: ChatML in which the last answer begins with its thoughts, or with none; earlier answers lose theirs


def _qwen3_turn(messages: Sequence[Message], i: int, marks: Marks) -> list[Segment]:
    role, content = messages[i]
    if role != "assistant":
        return _between_im(role, content, is_trained=False)
    thought, answer = split_thought(content)
    if any(message.role == "user" for message in messages[i:]):
        return _between_im(role, answer, is_trained=False)
    thinking = f"<think>\n{thought}\n</think>\n\n" if thought else NO_THOUGHT
    return _between_im(role, thinking + answer, is_trained=True)


def split_thought(content: str) -> tuple[str, str]:
    """What an answer says between `<think>` and `</think>`, and what it says after that."""
    before, closing, _ = content.partition("</think>")
    if not closing:
        return "", content
    return before.rpartition("<think>")[2].strip("\n"), content.rpartition("</think>")[2].lstrip("\n")


def _qwen3_jinja(marks: Marks) -> str:
    return (
        "{%- set found = namespace(question=-1) -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}{%- set found.question = loop.index0 -%}{%- endif -%}"
        "{%- endfor -%}"
        "{%- for message in messages -%}"
        "{%- set answer = message['content'] -%}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- set thought = '' -%}"
        "{%- if '</think>' in answer -%}"
        "{%- set thought = answer.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}"
        "{%- set answer = answer.split('</think>')[-1].lstrip('\\n') -%}"
        "{%- endif -%}"
        "{%- if loop.index0 > found.question -%}"
        "{%- set answer = '<think>\\n' + thought + '\\n</think>\\n\\n' + answer -%}"
        "{%- endif -%}"
        "{%- endif -%}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + answer + '<|im_end|>\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        "{{ '<|im_start|>assistant\\n' }}"
        "{%- if enable_thinking is not defined or not enable_thinking -%}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}"
        "{%- endif -%}"
        "{%- endif -%}"
    )


def _qwen3_opening(marks: Marks) -> list[Segment]:
    return [*_chatml_opening(marks), Segment(NO_THOUGHT)]


# --- Alpaca: headings in the text, and the tokenizer's own end token


def _alpaca_turn(messages: Sequence[Message], i: int, marks: Marks) -> list[Segment]:
    role, content = messages[i]
    begin = [control(marks.begin)] if marks.begin and i == 0 else []
    if role == "system":
        return [*begin, Segment(f"{content}\n\n")]
    if role == "user":
        return [*begin, Segment(f"{TITLES['user']}{content}\n\n")]
    end = control(marks.end, is_trained=True)
    return [*begin, Segment(TITLES["assistant"]), Segment(content, is_trained=True), end]


def _alpaca_jinja(marks: Marks) -> str:
    return (
        f"{_begin_jinja(marks)}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}"
        "{%- elif message['role'] == 'user' -%}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        f"{{%- else -%}}{{{{ '### Response:\\n' + message['content'] + {marks.end!r} }}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"
    )


# --- plain: question, line break, answer, end


def _plain_turn(messages: Sequence[Message], i: int, marks: Marks) -> list[Segment]:
    role, content = messages[i]
    begin = [control(marks.begin)] if marks.begin and i == 0 else []
    if role != "assistant":
        return [*begin, Segment(f"{content}\n")]
    return [*begin, Segment(content, is_trained=True), control(marks.end, is_trained=True)]


def _plain_jinja(marks: Marks) -> str:
    return (
        f"{_begin_jinja(marks)}"
        "{%- for message in messages -%}"
        f"{{{{ message['content'] + ({marks.end!r} if message['role'] == 'assistant' else '\\n') }}}}"
        "{%- endfor -%}"
    )


def _begin_jinja(marks: Marks) -> str:
    return f"{{{{ {marks.begin!r} }}}}" if marks.begin else ""


# --- Llama 3: a header of control tokens for each turn


def _llama3_turn(messages: Sequence[Message], i: int, marks: Marks) -> list[Segment]:
    role, content = messages[i]
    is_trained = role == "assistant"
    begin = [control(BEGIN_TEXT)] if i == 0 else []
    return [
        *begin,
        *_llama3_header(role),
        Segment(content, is_trained=is_trained),
        control(END_TURN, is_trained=is_trained),
    ]


def _llama3_header(role: str) -> list[Segment]:
    return [control(START_HEADER), Segment(role), control(END_HEADER), Segment("\n\n")]


def _llama3_jinja(marks: Marks) -> str:
    return (
        "{{ '<|begin_of_text|>' }}"
        "{%- for message in messages -%}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}"
        "{{ '<|eot_id|>' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
        "{%- endif -%}"
    )


CHATML = ChatTemplate("chatml", _chatml_turn, _chatml_opening, _chatml_jinja, IM_END, (IM_START, IM_END))
QWEN3 = ChatTemplate("qwen3", _qwen3_turn, _qwen3_opening, _qwen3_jinja, IM_END, (IM_START, IM_END), keeps_turns=False)
ALPACA = ChatTemplate(
    "alpaca",
    _alpaca_turn,
    lambda marks: [Segment(TITLES["assistant"])],
    _alpaca_jinja,
    before_input="\n\n### Input:\n",
)
PLAIN = ChatTemplate("plain", _plain_turn, lambda marks: [], _plain_jinja, before_input="\n")
LLAMA3 = ChatTemplate(
    "llama3",
    _llama3_turn,
    lambda marks: _llama3_header("assistant"),
    _llama3_jinja,
    END_TURN,
    (BEGIN_TEXT, START_HEADER, END_HEADER, END_TURN),
)
TEMPLATES = {template.name: template for template in (CHATML, QWEN3, ALPACA, LLAMA3, PLAIN)}


def template_called(name: str) -> ChatTemplate:
    """The template of that name.

    Raises:
        UserError: there is none.
    """
    if name not in TEMPLATES:
        raise UserError(f"there is no chat template {name!r}", remedy=f"one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def template_written(tokenizer: Tokenizer, text: str) -> ChatTemplate | None:
    """The template whose Jinja text this is, for this tokenizer; None: none of ours. The text is not run."""
    marks = Marks.of(tokenizer)
    return next((one for one in TEMPLATES.values() if text.strip() == one.jinja(marks).strip()), None)


def template_of(tokenizer: Tokenizer, text: str | None) -> ChatTemplate | None:
    """The template that a checkpoint's Jinja text is, or that its control tokens ask for; None: it was not taught to
    chat.

    Args:
        tokenizer: the checkpoint's.
        text: its Jinja text, which is compared and never run.
    """
    if text is not None and (written := template_written(tokenizer, text)):
        return written
    known = [t for t in (CHATML, LLAMA3) if all(tokenizer.token_id(token) is not None for token in t.control_tokens)]
    if not known:
        return None
    thinks = known[0] is CHATML and text is not None and "</think>" in text
    return QWEN3 if thinks else known[0]
