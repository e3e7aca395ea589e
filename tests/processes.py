"""Processes below a server's, found by what they were called with. Some end at any moment, and then are not found."""

from __future__ import annotations

import psutil


def words_of(process: psutil.Process) -> list[str]:
    """What a process was called with; nothing once it has ended, though whoever started it may not know yet."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def children_called(pid: int, word: str, *, recursive: bool = False) -> list[psutil.Process]:
    """The processes below another that have this in one of the words that they were called with."""
    try:
        children = psutil.Process(pid).children(recursive=recursive)
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if any(word in each for each in words_of(child))]
