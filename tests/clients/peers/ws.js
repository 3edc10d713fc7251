// Clients of npm `ws`. Each comes back through the broker when its connection ends.
import WebSocket from 'ws';
import { obey, say } from './lines.js';

const clients = new Map();

function connect(client, door) {
  const socket = new WebSocket(door, { followRedirects: true, handshakeTimeout: 10_000 });
  let arrived = false;
  clients.set(client, socket);
  socket.on('open', () => {
    arrived = true;
    say({ client, event: 'arrived', port: socket._socket.remotePort });
  });
  socket.on('message', (data, binary) => {
    if (!binary) say({ client, event: 'frame', text: data.toString() });
  });
  socket.on('error', () => {}); // `close` comes after it.
  socket.on('close', (code, reason) => {
    if (arrived) say({ client, event: 'left', code, reason: reason.toString() });
    if (clients.get(client) === socket) setTimeout(() => clients.has(client) && connect(client, door), 100 + Math.random() * 400);
  });
}

say({ event: 'ready' });
await obey({
  start: ({ client, door }) => connect(client, door),
  send: ({ client, text }) => clients.get(client).send(text),
  stop: ({ client }) => {
    const socket = clients.get(client);
    clients.delete(client);
    socket?.terminate();
  },
});
process.exit(0);
