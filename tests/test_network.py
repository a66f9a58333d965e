"""Tests that use the network fail."""

import asyncio
import socket

import pytest
from pytest_socket import SocketConnectBlockedError

pytestmark = pytest.mark.filterwarnings("ignore:A test tried to use socket")
ELSEWHERE = ("192.0.2.1", 80)  # reserved for documentation


def test_a_connection_to_another_machine_is_refused():
    with pytest.raises(SocketConnectBlockedError):
        socket.create_connection(ELSEWHERE, timeout=1)


async def test_a_connection_from_an_event_loop_is_refused():
    with pytest.raises(SocketConnectBlockedError):
        await asyncio.wait_for(asyncio.open_connection(*ELSEWHERE), timeout=1)


def test_a_connection_to_this_machine_is_allowed():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
