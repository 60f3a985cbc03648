"""What `tiny-transformer export` and `import` do: find out what is meant, write it, say what can be done with it."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tiny_transformer.config.load import load_run_config
from tiny_transformer.errors import UserError, command_line, plain
from tiny_transformer.interop.detect import kind_of
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.storage.marks import is_mark, marked_checkpoint
from tiny_transformer.storage.runs import CONFIG_FILE


def run_export(checkpoint: Path | None, *, kind: str, out: Path | None, overwrite: bool, console: Console) -> Path:
    """Write a checkpoint as a GGUF file; the file.

    Args:
        checkpoint: a checkpoint, run or Hugging Face directory; None for the newest.
        kind: one of `gguf_export.TYPES`.
        out: the file; by default named after the run, in the current directory.
        overwrite: replace a file of that name.

    Raises:
        UserError: see `find_checkpoint` and `export_gguf`.
    """
    directory, sentence = find_checkpoint(checkpoint)
    from tiny_transformer.interop.gguf.exporting import default_file_name, export_gguf

    console.print(f"[dim]{escape(plain(sentence))}[/]", highlight=False, soft_wrap=True)
    written = export_gguf(directory, out or default_file_name(directory, kind), kind=kind, overwrite=overwrite)
    lines = [f"wrote {plain(written.path)}: {written.num_bytes / 2**20:,.1f} MiB, {written.kind}"]
    if written.kept_f16:
        lines.append(f"{len(written.kept_f16)} tensors stay f16: {kind} needs rows of a multiple of 32 weights")
    if written.has_second_head:
        lines.append("the MTP head (mtp.*) is left out: llama.cpp has no use for it")
    lines.append(f"next: {command_line('llama-cli', '-m', written.path)} -no-cnv -p {_prompt_for(directory)}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return written.path


def run_import(
    source: Path, *, out_dir: Path, tokenizer: str | None, dtype: str | None, full_size: bool = False, console: Console
) -> None:
    """Read a model or token files of another program and write them as ours, all or nothing.

    Args:
        source: a Hugging Face directory, a directory of token files, a GGUF file or a llama2.c model.
        out_dir: a directory that does not exist yet.
        tokenizer: for token files a name or directory, for llama2.c the tokenizer's file; the others have their own.
        dtype: of token files; None: uint16.
        full_size: of a GGUF file with quantized weights: write them as float32.

    Raises:
        UserError: not one of these, a pickle, or what the import itself refuses.
    """
    if is_mark(source):  # a link or a text file
        source = marked_checkpoint(source.parent, source.name) or source
    kind, note = kind_of(source), ""
    if full_size and kind != "gguf":
        raise UserError(f"{source} is no GGUF file, and nothing else is quantized", remedy="leave --full_size out")
    if dtype is not None and kind != "token_bins":
        raise UserError(f"{source} holds no token files, and a model says its own types", remedy="leave --dtype out")
    next_step = f"{command_line('generate', '--ckpt_dir', out_dir, '--prompt')} {_prompt_for(source)}"
    if kind in ("hf", "gguf"):
        if tokenizer is not None:
            what = "a Hugging Face directory" if kind == "hf" else "a GGUF file"
            raise UserError(f"{what} has its own tokenizer", remedy="leave --tokenizer out")
        if kind == "hf":
            from tiny_transformer.interop.hf import import_hf

            import_hf(source, out_dir)
        else:
            from tiny_transformer.interop.gguf.importing import import_gguf

            if kinds := import_gguf(source, out_dir, full_size=full_size):
                note = f"weights stay as they are ({' and '.join(kinds)}); --full_size makes float32 of them"
    elif tokenizer is None:
        remedy = "--tokenizer gpt2 (or a directory)" if kind == "token_bins" else "--tokenizer tokenizer.bin"
        raise UserError(f"{source} does not say which tokenizer it was made with", remedy=f"name it: {remedy}")
    elif kind == "token_bins":
        from tiny_transformer.interop.token_bins import import_token_bins

        import_token_bins(source, out_dir, tokenizer=tokenizer, dtype=dtype or "uint16")
        next_step = command_line("train", "--data_dir", out_dir, "--minutes", 10)
    else:
        from tiny_transformer.interop.llama2c import import_llama2c

        import_llama2c(source, tokenizer, out_dir)
        # They all write stories.
        next_step = command_line("generate", "--ckpt_dir", out_dir, "--prompt", "Once upon a time")
    if note:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    for line in (f"wrote {plain(out_dir)}", f"next: tiny-transformer {next_step}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _prompt_for(checkpoint: Path) -> str:
    """A prompt that fits what a model has read, as a shell takes it: what its run was sampled with, where that is
    known."""
    with suppress(UserError):
        if prompts := load_run_config(checkpoint.absolute().parent / CONFIG_FILE).training.sample_prompts:
            return shlex.quote(prompts[0])
    return '"YOUR TEXT"'
