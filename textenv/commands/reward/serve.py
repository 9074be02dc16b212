"""``textenv reward serve``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textenv.commands.base import Command
from textenv.commands.console import tell
from textenv.commands.flags import parse_reward
from textenv.validation import Count, NonEmpty, Port

__all__ = ["Serve"]


@dataclass(frozen=True)
class Serve(Command):
    """Answer score requests over HTTP, for the reward named "http" of a run elsewhere.

    Attributes:
        reward: Name of a reward, a JSON object with "name" and arguments, or package.module:attribute.
        host: Address to listen at. There is no password: keep to this machine, or put a proxy with one in front.
        port: Port to listen at; 0 for one that is free.
        max_megabytes: Size of a request, at most.
        allow_host: Other names that the server answers by, such as a proxy's.
    """

    reward: str
    host: NonEmpty = "127.0.0.1"
    port: Port = 8900
    max_megabytes: Count = 8
    allow_host: tuple[str, ...] = ()

    after_signal: ClassVar[str] = "The same command serves again."
    keeps_memory: ClassVar[bool] = False

    def run(self) -> int:
        """Serve until a signal ends it."""
        from textenv.env.reward_calls import reward_name  # noqa: PLC0415
        from textenv.env.scoring import resolve_reward  # noqa: PLC0415
        from textenv.web.reward_server import serve  # noqa: PLC0415 (an optional dependency)

        reward = resolve_reward(parse_reward(self.reward))

        def announce(url: str) -> None:
            tell(f"{reward_name(reward)} answers at {url}")

        serve(
            reward,
            host=self.host,
            port=self.port,
            max_bytes=self.max_megabytes * 10**6,
            hosts=self.allow_host,
            announce=announce,
        )
        return 0
