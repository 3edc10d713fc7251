"""One driver for each client that Usher is tested with. The story of a client is written once, for all."""

from .aiohttp_client import Aiohttp
from .chromium import ChromiumBare, ChromiumFetch
from .faye import Faye
from .npm_ws import NpmWs
from .okhttp import OkHttp
from .old_websocket_client import OldWebsocketClient
from .soup import Soup
from .usher_v1 import UsherV1
from .websocket_client import WebsocketClient
from .websockets_client import Websockets, WebsocketsLoop

# Each is paired with the next one as a team mate, so that every client talks to another kind.
KINDS = [
    Websockets,
    WebsocketsLoop,
    Aiohttp,
    WebsocketClient,
    NpmWs,
    ChromiumFetch,
    ChromiumBare,
    UsherV1,
    # These take some close codes for a protocol error that others hand on.
    Faye,
    OldWebsocketClient,
    Soup,
    OkHttp,
]
