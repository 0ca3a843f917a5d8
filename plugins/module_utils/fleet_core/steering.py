# SPDX-License-Identifier: GPL-3.0-or-later
"""The words around a prompt: what became of the last attempt, and the messages of people who steer."""

from __future__ import annotations

from dataclasses import dataclass

from .agent_runs import INTERRUPTED, Prompt


@dataclass(frozen=True)
class Message:
    """A steering message for a prompt. again: why it is given once more, or nothing."""

    sender: str
    text: str
    again: str = ""


def compose(ask: Prompt, messages: tuple[Message, ...], resumed: bool, result: str = "") -> str:
    """Return the text for the runner: the prompt, what became of the last attempt, and the messages.

    resumed: whether the runner goes on with a session, which knows what was said before. result: the run's last one,
    for a turn that is for messages only.
    """
    parts = []
    if ask.attempt_state == INTERRUPTED:
        known = "Go on where it ended." if resumed else "Part of the work may be done already; look first."
        parts.append(f"[The previous attempt at this was interrupted. {known} The task again:]" if ask.text else "")
    if ask.messages_only and not resumed and result:
        parts.append(f"[The work is done. Its last result was:]\n{result}")
    parts.append(ask.text)
    if messages:
        what = "message" if len(messages) == 1 else f"{len(messages)} messages, in the order of their arrival"
        parts.append(f"[Steering: {what}. Follow what is said here.]")
        parts.extend(_quoted(number, message) for number, message in enumerate(messages, 1))
        parts.append("[End of the steering messages]")
    return "\n\n".join(part for part in parts if part)


def _quoted(number: int, message: Message) -> str:
    sender = f" from {message.sender}" if message.sender else ""
    again = f" ({message.again})" if message.again else ""
    return f"[Message {number}{sender}{again}]\n{message.text}"
