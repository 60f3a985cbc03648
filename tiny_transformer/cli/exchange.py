"""The verbs that write models in other forms: export, import, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tiny_transformer.cli.frame import SETTINGS, CheckpointArgument, CheckpointToo, app, one_checkpoint
from tiny_transformer.errors import UserError


@app.command(context_settings=SETTINGS)
def export(
    ckpt_dir: CheckpointArgument = None,
    named: CheckpointToo = None,
    gguf: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="f32 (exact), f16 (half the size), q8_0 (8.5 bits per weight) or q4_0 (4.5 bits, a little worse).",
        ),
    ] = "f16",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: RUN-TYPE.gguf in the current directory.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file of that name.")] = False,
) -> None:
    """Write a model, its tokenizer included, as one GGUF file for llama.cpp, Ollama, LM Studio and the like.

    transformers, vLLM and mlx-lm need no export: they open the checkpoint directory as it is.
    """
    from tiny_transformer.interop.command import run_export

    run_export(one_checkpoint(ckpt_dir, named), kind=gguf, out=out, overwrite=overwrite, console=Console())


@app.command("import", context_settings=SETTINGS)
def import_(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A Hugging Face directory, a .gguf, a llama2.c .bin, or token files."),
    ],
    out_dir: Annotated[
        Path, typer.Option("--out_dir", metavar="DIR", help="The directory to write; it must not exist yet.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="For a llama2.c model, its tokenizer.bin; for train.bin and val.bin, a name such as gpt2."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="How token files store an id, which they do not record: uint16 (the default) or uint32."),
    ] = None,
    full_size: Annotated[
        bool,
        typer.Option(
            "--full_size",
            help="Expand the weights of a q8_0 or q4_0 file to float32, so that they can be trained further.",
        ),
    ] = False,
) -> None:
    """Import a model or token files from another program: checked, and written as a directory that every command opens.

    Pickled files (.pt, .pth, .ckpt, .pkl) are never read: loading one can run any program.
    """
    from tiny_transformer.interop.command import run_import

    run_import(source, out_dir=out_dir, tokenizer=tokenizer, dtype=dtype, full_size=full_size, console=Console())


@app.command(context_settings=SETTINGS)
def quantize(
    checkpoint: CheckpointArgument = None,
    named: CheckpointToo = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="8 bits per weight: a quarter of the size, hardly any loss.")
    ] = False,
    int4: Annotated[bool, typer.Option("--int4", help="4 bits per weight; 8 for embedding and head.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "--out_dir", metavar="DIR", help="Default: int8 or int4 in the run's directory."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data_dir", metavar="DIR", help="Prepared data to evaluate on. Default: what the run learnt from."
        ),
    ] = None,
    max_batches: Annotated[
        int | None,
        typer.Option("--max_batches", min=1, help="Evaluate on this many batches of 16 sequences. Default: all."),
    ] = None,
) -> None:
    """Quantize a model to 8 or 4 bits per weight, and compare it with the original.

    Linear layers get the bits you ask for; embedding and head get 8; norms, biases and routers keep theirs. Quantized
    weights do not learn: go on training with the model they were made of. Other programs read `export --gguf q8_0`.
    """
    from tiny_transformer.quantization.command import QuantizeOptions, run_quantize

    if int8 == int4:
        raise UserError("quantize to how many bits?", where="command line", remedy="--int8 or --int4")
    checkpoint = one_checkpoint(checkpoint, named)
    options = QuantizeOptions("int8" if int8 else "int4", checkpoint, out, data_dir, max_batches)
    run_quantize(options, Console(), Console(stderr=True))
