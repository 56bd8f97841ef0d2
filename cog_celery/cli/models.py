"""The commands for a model's author: `init`, `install`, `schema`.

It must not know how anything is done.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Final

import click

from cog_celery.cli.base import MODEL_DIR, SUCCEEDED, cli, examples, load, options_of
from cog_celery.models.installing import Tool

TOOLS: Final = ("uv", "pip")


@cli.command(
    short_help="Write a small model that works.",
    **examples("cog-celery init my-model", "cog-celery predict my-model"),
)
@click.argument("folder", type=click.Path(path_type=Path), default=".")
def init(folder: Path) -> int:
    """Writes a small model that works into FOLDER, this one by default: cog.yaml, predict.py, README.md.

    Nothing is overwritten.
    """
    from cog_celery.models.scaffold import write_model

    for file in write_model(folder):
        click.echo(f"wrote {file}", err=True)
    place = shlex.quote(str(folder))
    click.echo(
        "\n".join(
            (
                "What to do next:",
                f"  cog-celery predict {place}                       run it once, with its test_inputs",
                f"  cog-celery predict {place} -i text=you -i times=2",
                f"  cog-celery schema {place}                        show what it takes and gives",
                f"  cog-celery run {place}                           serve it, on a Redis of its own",
            )
        )
    )
    return SUCCEEDED


@cli.command(
    short_help="Install what a model's cog.yaml asks for.",
    **examples("cog-celery install my-model", "cog-celery install my-model --with pip"),
)
@MODEL_DIR
@click.option("--with", "tool", type=click.Choice(TOOLS), help="What installs.  [default: uv if it is there, else pip]")
@options_of("install")
def install(tool: Tool | None, **flags: object) -> int:
    """Makes a virtual environment with the Python and the packages that the cog.yaml in MODEL_DIR asks for.

    run, worker, predict and schema find it, also for other models that ask for the same. It lies in
    $XDG_CACHE_HOME/cog-celery/envs (~/.cache/cog-celery/envs); delete it to have it made anew. What is
    installed goes to standard output. Exit status: 1 when it could not be installed.
    """
    settings = load(flags, quiet=True)
    from cog_celery.models.build import read_build
    from cog_celery.models.installing import install as make

    def say(text: str) -> None:
        click.echo(f"cog-celery: {text}", err=True)

    build = read_build(settings.model_folder())
    if build.image:
        say(f"left to the image, or to you: {'; '.join(build.image)}")
    place, made = make(build, tool, say)
    say(f"{'installed' if made else 'installed already'}: {place.python}")
    packages = place.packages()
    width = max((len(name) for name, _ in packages), default=0)
    for name, version in packages:
        click.echo(f"{name:<{width}}  {version}")
    return SUCCEEDED


@cli.command(
    short_help="Print a model's OpenAPI document.",
    **examples("cog-celery schema workers/hello", "cog-celery schema my-model | jq .components.schemas.Input"),
)
@MODEL_DIR
@options_of("schema")
def schema(**flags: object) -> int:
    """Prints the OpenAPI document of the model in MODEL_DIR, of which setup() is not run.

    Exit status: 1 when the model cannot be loaded; why, and what to write instead, is on standard error.
    """
    settings = load(flags, quiet=True).for_model()
    from cog_celery.local import predicting

    click.echo(json.dumps(predicting.schema(settings), indent=2))
    return SUCCEEDED
