"""A group of commands whose help lists them by stage, each with its whole first sentence."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class StagedGroup(TyperGroup):
    """Typer's group, but help names stages and cuts nothing."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each stage, which is what ``rich_help_panel`` of a command names."""
        stages: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            stage = getattr(command, "rich_help_panel", None)
            summary = (command.help or "").partition("\n\n")[0]
            stages.setdefault(stage if isinstance(stage, str) else "Commands", []).append((name, summary))
        for stage in sorted(stages):
            with formatter.section(stage):
                formatter.write_dl(stages[stage])
