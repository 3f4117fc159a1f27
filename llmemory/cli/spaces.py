"""Commands on the models that vectors come from: reembed, and db spaces, db drop-space."""

from __future__ import annotations

from rich.text import Text

from llmemory.cli.running import GivenSettings, with_memory
from llmemory.cli.terminal import (
    confirmed,
    output,
    print_json,
    print_values,
    progress_bar,
    remarks,
)

__all__ = ["drop_space", "reembed", "spaces"]


def reembed(*, drop_old: bool = False, skip_refused: bool = False, settings: GivenSettings) -> None:
    """Make the vectors of the configured model, for all owners, then switch to them.

    Searches and additions go on with the former model meanwhile. Stopped at any point and started
    again, it goes on.

    Args:
        drop_old: Delete the vectors of the former models then, for good.
        skip_refused: Switch even if the model refuses texts; "jobs list" says which documents are
            found by their words only then.
        settings: What the global options and the environment say.
    """
    with progress_bar() as show:
        result = with_memory(
            settings,
            lambda memory: memory.reembed(
                drop_old=drop_old, skip_refused=skip_refused, on_progress=show
            ),
        )
    print_values(result)


def spaces(*, json: bool = False, settings: GivenSettings) -> None:
    """Print the models whose vectors there are, and how many chunks have none.

    Args:
        json: Print them as JSON.
        settings: What the global options and the environment say.
    """
    found = with_memory(settings, lambda memory: memory.list_spaces())
    if json:
        print_json(found)
        return
    form = "{:>5}  {:<9}  {:>10}  {:>10}  {:>10}  {}"
    heading = form.format("SPACE", "STATE", "VECTORS", "MISSING", "DIMENSIONS", "MODEL")
    output.print(Text(heading, style="bold"), soft_wrap=True)
    for space in found:
        line = form.format(
            space.space_id,
            space.state,
            space.vectors,
            space.missing,
            space.dimensions,
            f"{space.provider}/{space.model}",
        )
        output.print(Text(line), soft_wrap=True)


def drop_space(space_id: int, /, *, yes: bool = False, settings: GivenSettings) -> int:
    """Delete the vectors of a model that was replaced, or whose vectors are not complete.

    Args:
        space_id: Its number, as spaces prints it.
        yes: Do not ask.
        settings: What the global options and the environment say.
    """
    if not yes and not confirmed(
        f'Delete the vectors of space {space_id} in schema "{settings.schema_name}"? Memories that '
        "still have its embedder cannot search by meaning then."
    ):
        remarks.print("Nothing was changed; --yes goes ahead without asking.")
        return 1
    with progress_bar() as show:
        dropped = with_memory(
            settings, lambda memory: memory.drop_space(space_id, on_progress=show)
        )
    output.print(f"{dropped} vectors deleted")
    return 0
