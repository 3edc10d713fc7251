// Clients in headless Chromium: one page for each, served from a loopback port of its own, so that the broker is of
// another origin to it.
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { obey, say } from './lines.js';

const given = new Map(); // Pages that came with an order, by client.
const server = createServer(async (request, response) => {
  const name = { '/fetch': 'fetch.html', '/bare': 'bare.html' }[request.url];
  const html = given.get(request.url);
  if (!name && !html) return response.writeHead(404).end();
  const page = html ?? await readFile(new URL(name, import.meta.url));
  response.writeHead(200, { 'content-type': 'text/html' }).end(page);
});
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const origin = `http://127.0.0.1:${server.address().port}`;

const profile = await mkdtemp(join(tmpdir(), 'usher-chromium-'));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM_BIN ?? '/usr/bin/chromium',
  headless: true,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ],
});
const pages = new Map();

say({ event: 'ready' });
await obey({
  start: async ({ client, door, page: name }) => {
    const page = await browser.newPage();
    pages.set(client, page);
    if (name.html) {
      given.set(`/given/${client}`, name.html);
      page.on('console', (message) => message.type() === 'log' && say({ client, event: 'frame', text: message.text() }));
      page.on('requestfailed', () => say({ client, event: 'failed' }));
      await page.goto(`${origin}/given/${client}`);
      return;
    }
    await page.exposeFunction('tell', (event) => say({ client, ...event }));
    await page.goto(`${origin}/${name}`);
    await page.evaluate((door) => { window.usher = connect(door); }, door);
  },
  send: ({ client, text }) => pages.get(client).evaluate((text) => (window.usher?.send ?? say)(text), text),
  stop: async ({ client }) => {
    await pages.get(client)?.close();
    pages.delete(client);
  },
});
await browser.close();
server.close();
await rm(profile, { recursive: true, force: true });
process.exit(0);
