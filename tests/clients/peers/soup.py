"""Clients of libsoup 3, the HTTP library of GNOME and of WebKitGTK, by its introspection."""

import random
import threading

import gi

gi.require_version("Soup", "3.0")
from gi.repository import GLib, Soup  # noqa: E402  (the version comes first)
from lines import orders, say  # noqa: E402

clients = {}
session = Soup.Session()


class Client:
    def __init__(self, number, door):
        self.number, self.door, self.socket = number, door, None
        self.dial()

    def dial(self):
        if clients.get(self.number) is self:
            message = Soup.Message.new("GET", self.door)
            session.websocket_connect_async(message, None, [], GLib.PRIORITY_DEFAULT, None, self.dialled, message)
        return GLib.SOURCE_REMOVE

    def later(self):
        GLib.timeout_add(random.randint(100, 500), self.dial)

    def dialled(self, _, result, message):
        try:
            self.socket = session.websocket_connect_finish(result)
        except GLib.Error:
            return self.later()
        self.socket.connect("message", self.heard)
        self.socket.connect("closed", self.closed)
        say(client=self.number, event="arrived", port=message.get_uri().get_port())

    def heard(self, _, kind, data):
        if kind == Soup.WebsocketDataType.TEXT:
            say(client=self.number, event="frame", text=data.get_data().decode())

    def closed(self, socket):
        reason = socket.get_close_data() or ""
        say(client=self.number, event="left", code=socket.get_close_code() or None, reason=reason)
        self.later()


def start(client, door, **_):
    # Known before it dials.
    clients[client] = one = Client.__new__(Client)
    one.__init__(client, door)


def send(client, text):
    clients[client].socket.send_text(text)


def stop(client):
    socket = clients.pop(client).socket
    if socket and socket.get_state() == Soup.WebsocketState.OPEN:
        socket.close(1000, None)


def obey(order):
    {"start": start, "send": send, "stop": stop}[order.pop("do")](**order)
    return GLib.SOURCE_REMOVE


def read(loop):
    for order in orders():
        GLib.idle_add(obey, order)
    GLib.idle_add(loop.quit)


loop = GLib.MainLoop()
threading.Thread(target=read, args=(loop,), daemon=True).start()
say(event="ready")
loop.run()
