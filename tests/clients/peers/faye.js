// Clients of npm `faye-websocket`, which follows no redirect: each asks for its node's URL as JSON, every time anew.
import faye from 'faye-websocket';
import { obey, say } from './lines.js';

const clients = new Map();

async function connect(client, door) {
  const again = () => setTimeout(() => clients.has(client) && connect(client, door), 100 + Math.random() * 400);
  let answer;
  try {
    const response = await fetch(door, { headers: { accept: 'application/json' } });
    if (!response.ok) return again();
    answer = await response.json();
  } catch {
    return again();
  }
  if (!clients.has(client)) return;
  const socket = new faye.Client(answer.url);
  let arrived = false;
  clients.set(client, socket);
  socket.on('open', () => {
    arrived = true;
    say({ client, event: 'arrived', port: Number(new URL(answer.url).port) });
  });
  socket.on('message', ({ data }) => say({ client, event: 'frame', text: data }));
  socket.on('error', () => {}); // `close` comes after it.
  socket.on('close', ({ code, reason }) => {
    if (arrived) say({ client, event: 'left', code, reason });
    again();
  });
}

say({ event: 'ready' });
await obey({
  start: ({ client, door }) => {
    clients.set(client, null);
    connect(client, door);
  },
  send: ({ client, text }) => clients.get(client).send(text),
  stop: ({ client }) => {
    const socket = clients.get(client);
    clients.delete(client);
    socket?.close();
  },
});
process.exit(0);
