"""What `tiny-transformer export` does: find the checkpoint, write the file, say what can be done with it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tiny_transformer.generation.find import find_checkpoint


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
    from tiny_transformer.interop.gguf_export import default_file_name, export_gguf

    console.print(f"[dim]{sentence}[/]", highlight=False, soft_wrap=True)
    written = export_gguf(directory, out or default_file_name(directory, kind), kind=kind, overwrite=overwrite)
    lines = [f"wrote {written.path}: {written.num_bytes / 2**20:,.1f} MiB, {written.kind}"]
    if written.kept_f16:
        lines.append(f"{len(written.kept_f16)} tensors stay f16: {kind} needs rows of a multiple of 32 weights")
    lines.append(f'next: llama-cli -m {written.path} -no-cnv -p "Once upon a time"')
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return written.path
