// Orders come in as lines of JSON on standard input, events go out the same way. The program ends with its input.
import { createInterface } from 'node:readline';

export const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);

export async function obey(orders) {
  for await (const line of createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    await orders[order.do](order);
  }
}
