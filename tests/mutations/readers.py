"""Bugs of the reader: the reference reads the source in the same wrong way as the converter.

The artefact is exactly what was read, so only a check that judges the reading can catch them.
"""

from __future__ import annotations

from dataclasses import replace

from tests.mutations.mutation import Model, Mutation, in_source

__all__ = ["READERS"]


def taken_for(groups: int) -> Model:
    """Read the packed matrices as if they had another number of groups."""
    return lambda source: replace(source, decoder=source.decoder.with_groups(groups))


READERS: tuple[Mutation, ...] = tuple(
    in_source(
        f"qkv_proj of the source taken for {groups} group{'s' if groups > 1 else ''}",
        ("source.groups",),
        taken_for(groups),
        models=("trained",),  # nothing is known of random weights
    )
    for groups in (1, 2)
)
