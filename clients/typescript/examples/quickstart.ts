// Starts a session, speaks with it, watches it write, and ends it. README.md says how to run it.

import { OrchestratorClient, OrchestratorError, type Sent } from '@neolith/orchestrator-client';

const client = new OrchestratorClient({
  addresses: (process.env['GATEWAY'] ?? 'https://127.0.0.1:8079').split(','),
  token: process.env['GATEWAY_TOKEN'] ?? '',
});
client.on('state', ({ state }) => console.error(`(${state})`));

try {
  const command = ['sh', '-c', 'n=0; while read -r line; do n=$((n+1)); echo "$n $line"; done'];
  const { id, node } = (await client.call('session_spawn', { command, wait: true })).json<{ id: string; node: string }>();
  console.log(`session ${id} runs on ${node}`);

  const answer = await client.call('session_send', { id, message: 'good morning' }, { priority: 'high', deadlineMs: 60_000 });
  console.log(answer.json<Sent>().result);

  const stream = client.stream('session_send', { id, message: 'and again' });
  for await (const chunk of stream) process.stdout.write(chunk);
  console.log((await stream.result).json<Sent>().status);

  await client.call('session_terminate', { id });
} catch (err) {
  if (!(err instanceof OrchestratorError)) throw err;
  console.error(`${err.code}: ${err.message}`);
  process.exitCode = 1;
} finally {
  await client.close();
}
