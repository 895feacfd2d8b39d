"""Waits of an agent: whatever its workers write into the memory that they share with it."""

from __future__ import annotations

import os

import pytest

from atoll.agent import shared_memory
from atoll.agent.endings import Child
from atoll.agent.landlock import Landlock
from atoll.agent.main import Agent
from atoll.agent.shared_memory import SharedMemory
from atoll.wire.channel import Channel, pair


@pytest.mark.parametrize("value", [0, 1, 1 << 31, 1 << 62, (1 << 64) - 1])
def test_no_value_of_a_workers_words_stops_the_agent(value: int) -> None:
    """A deadline of any size gives a time that the kernel takes, and is looked at without an error."""
    ours, theirs = pair()
    landlock, descriptor = Landlock(), shared_memory.make()
    memory = SharedMemory(descriptor)
    try:
        agent = Agent(Channel(ours), landlock)
        child = Child(os.getpid(), os.pidfd_open(os.getpid()), memory)
        for word in range(shared_memory.WORDS):
            memory.words[word] = value
        agent._workers["worker"] = child
        agent.watch(agent._alarm, agent._drain_alarm)
        os.write(agent._alarm_end, b"!")  # so that the wait ends at once
        assert agent._poll.poll(agent._milliseconds())
        assert agent._usage()["worker"]["busy"] == value
        agent._workers.clear()
        os.close(child.pidfd)
        os.close(agent._alarm)
        os.close(agent._alarm_end)
    finally:
        memory.close()
        os.close(descriptor)
        landlock.close()
        ours.close()
        theirs.close()
