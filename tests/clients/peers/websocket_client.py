"""Clients of an old `websocket-client`, as Debian 12 has it: blocking, so each lives in a thread."""

import os
import random
import socket as sockets
import threading
import time

import websocket
from lines import orders, say

clients = {}


class Client(threading.Thread):
    def __init__(self, number, door):
        super().__init__(daemon=True)
        self.number, self.door, self.socket = number, door, None

    def run(self):
        while clients.get(self.number) is self:
            try:
                # A time-out bounds the handshake; the connection itself may be silent.
                self.socket = websocket.create_connection(self.door, timeout=10)
                self.socket.settimeout(None)
                self.talk()
            except (OSError, websocket.WebSocketException):
                pass
            time.sleep(random.uniform(0.1, 0.5))

    def talk(self):
        code, reason = None, ""
        say(client=self.number, event="arrived", port=self.socket.sock.getpeername()[1])
        try:
            while True:
                opcode, data = self.socket.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    code, reason = int.from_bytes(data[:2], "big"), data[2:].decode()
                    break
                say(client=self.number, event="frame", text=data.decode())
        finally:
            say(client=self.number, event="left", code=code, reason=reason)
            self.socket.shutdown()


def start(client, door, **_):
    clients[client] = one = Client(client, door)
    one.start()


def send(client, text):
    clients[client].socket.send(text)


def stop(client):
    one = clients.pop(client)
    try:
        # `close` of another thread would wait for an answer that the reader takes away.
        one.socket.sock.shutdown(sockets.SHUT_RDWR)
    except (AttributeError, OSError):
        pass


say(event="ready")
for order in orders():
    {"start": start, "send": send, "stop": stop}[order.pop("do")](**order)
os._exit(0)
