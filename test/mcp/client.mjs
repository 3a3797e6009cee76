// Clients of the official TypeScript SDKs do the round of what the gateway offers and print, as JSON, what they saw.
// clients_test.go judges that.
//
//   MCP_URLS=https://…/mcp,… MCP_TOKEN=orch_… node client.mjs rounds|refused

import { Client as ClientV1 } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport as HTTPV1 } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { WebSocketClientTransport } from '@modelcontextprotocol/sdk/client/websocket.js';
import { ResourceUpdatedNotificationSchema } from '@modelcontextprotocol/sdk/types.js';
import { Client as ClientV2, StreamableHTTPClientTransport as HTTPV2 } from '@modelcontextprotocol/client';
import WebSocket from 'ws';

// http and websocket are version 1 of the SDK with the versions of the protocol that have sessions; http-2026 is version 2 with the
// one that has none; websocket-page shows its token as a web page has to.
const ways = ['http', 'http-2026', 'websocket', 'websocket-page'];

// The clients are spread over the servers.
const urls = process.env.MCP_URLS.split(',').map((u) => new URL(u));
const urlOf = (way) => urls[ways.indexOf(way) % urls.length];
const info = { name: 'mcp-test', version: '1' };

// The SDK's WebSocket transport takes no options: who has a token gives it to the WebSocket that the transport makes. Programs
// set a header; pages, which cannot, offer the token as a subprotocol.
function socketWith(token, inSubprotocol) {
	return class extends WebSocket {
		constructor(to, protocol) {
			if (inSubprotocol) super(to, [protocol, `bearer.${token}`]);
			else super(to, protocol, { headers: { Authorization: `Bearer ${token}` } });
		}
	};
}

const updated = (v1) => (v1 ? ResourceUpdatedNotificationSchema : 'notifications/resources/updated');

// Each way of connecting, as one shape.
async function connect(way, token) {
	const url = urlOf(way);
	const headers = token ? { Authorization: `Bearer ${token}` } : {};
	let transport;
	let client = new ClientV1(info);
	let v1 = true;
	switch (way) {
		case 'http':
			transport = new HTTPV1(url, { requestInit: { headers } });
			break;
		case 'http-2026':
			transport = new HTTPV2(url, { requestInit: { headers } });
			client = new ClientV2(info, { versionNegotiation: { mode: { pin: '2026-07-28' } } });
			v1 = false;
			break;
		case 'websocket':
		case 'websocket-page':
			globalThis.WebSocket = socketWith(token, way === 'websocket-page');
			transport = new WebSocketClientTransport(new URL(url.href.replace(/^http/, 'ws')));
			break;
		default:
			throw new Error(`${way} is no way to connect`);
	}
	const told = [];
	let tell = () => {};
	client.setNotificationHandler(updated(v1), (n) => {
		told.push(n.params.uri);
		tell();
	});
	await client.connect(transport);
	return {
		client,
		call: (params, options) => (v1 ? client.callTool(params, undefined, options) : client.callTool(params, options)),
		subscribe: async (uri) => {
			if (v1) {
				await client.subscribeResource({ uri });
				return () => client.unsubscribeResource({ uri });
			}
			const s = await client.listen({ resourceSubscriptions: [uri] });
			return () => s.close();
		},
		news: () => (told.length > 0 ? Promise.resolve() : new Promise((resolve) => (tell = resolve))).then(() => told.shift()),
	};
}

const within = (ms, what, promise) =>
	Promise.race([promise, new Promise((_, reject) => setTimeout(() => reject(new Error(`${what}: nothing within ${ms} ms`)), ms).unref())]);

// inFlight asks a server how many calls are in flight, until it is as many as expected.
async function inFlight(way, expected) {
	for (let i = 0; ; i++) {
		const text = await (await fetch(new URL('/metrics', urlOf(way)), { headers: { Authorization: `Bearer ${process.env.MCP_TOKEN}` } })).text();
		const n = Number(/^\w*client_calls_in_flight (\d+)/m.exec(text)?.[1]);
		if (n === expected) return n;
		if (i === 100) throw new Error(`${n} calls are in flight, not ${expected}`);
		await new Promise((resolve) => setTimeout(resolve, 100));
	}
}

// The session that is spoken to. "slow" takes longer than the server waits before it says that a call goes on.
const program = `
printf 'kept\\n' > greeting; mkdir -p sub; printf '\\000\\001\\377' > sub/bytes
while read -r line; do
	case $line in slow) sleep 10 ;; forever) sleep 600 ;; esac
	echo "got $line"
done`;

class Round {
	constructor(way, connection) {
		Object.assign(this, connection);
		this.out = { way, server: this.client.getServerVersion()?.name, capabilities: this.client.getServerCapabilities() };
	}

	async send(message, options) {
		const r = await this.call({ name: 'session_send', arguments: { id: this.id, message } }, options);
		return r.isError ? r.content[0].text : r.structuredContent.result;
	}

	async read(path) {
		return (await this.client.readResource({ uri: `session://${this.id}/${path}` })).contents[0];
	}

	// Tools, progress, resources and news of them.
	async look() {
		const { out, client, call } = this;
		out.tools = (await client.listTools()).tools.map((t) => t.name);
		out.templates = (await client.listResourceTemplates()).resourceTemplates.map((t) => t.uriTemplate);
		const spawned = await call({ name: 'session_spawn', arguments: { name: out.way, command: ['sh', '-c', program], checkpoint_every: 'turn', wait: true } });
		this.id = spawned.structuredContent.id;
		out.phase = spawned.structuredContent.phase;
		out.answer = await this.send('hello');
		out.progress = [];
		out.slow = await this.send('slow', { onprogress: (p) => out.progress.push(p.message), resetTimeoutOnProgress: true, timeout: 60_000 });
		out.wrong = await call({ name: 'session_get', arguments: { id: 5 } }).then((r) => ({ isError: r.isError, text: r.content[0].text }));

		await call({ name: 'session_checkpoint', arguments: { id: this.id } });
		const all = [];
		let cursor;
		do {
			const page = await client.listResources(cursor ? { cursor } : undefined);
			all.push(...page.resources.map((r) => r.uri));
			cursor = page.nextCursor;
		} while (cursor);
		out.resources = all.filter((uri) => uri.startsWith(`session://${this.id}/`)).map((uri) => uri.replace(this.id, 'ID'));
		out.log = (await this.read('log')).text;
		out.since = (await this.read('log?since=2')).text;
		out.directory = JSON.parse((await this.read('workspace/')).text).entries.map((e) => `${e.type} ${e.name}`);
		out.file = (await this.read('workspace/greeting')).text;
		out.bytes = (await this.read('workspace/sub/bytes')).blob;
		out.missing = await this.read('workspace/none').then(String, (e) => e.message);
		out.elsewhere = await this.read('workspace/../etc/passwd').then(String, (e) => e.message);

		const stop = await this.subscribe(`session://${this.id}/log`);
		await this.send('more');
		out.told = (await within(20_000, 'news of the log', this.news())).replace(this.id, 'ID');
		await stop();
	}

	// A call that is cancelled ends at the server, too. What is in flight is counted for all: one round at a time.
	async cancel() {
		await inFlight(this.out.way, 0);
		const giveUp = new AbortController();
		const endless = this.send('forever', { signal: giveUp.signal, timeout: 120_000 }).then(String, (e) => `cancelled: ${e.message ?? e}`);
		await Promise.race([inFlight(this.out.way, 1), endless.then((e) => Promise.reject(new Error(`${this.out.way}: the call that is to be cancelled ended: ${e}`)))]);
		giveUp.abort('no patience');
		this.out.cancelled = await endless;
		this.out.inFlight = await inFlight(this.out.way, 0);
		const ended = await this.call({ name: 'session_terminate', arguments: { id: this.id, grace: '1s' } });
		this.out.terminated = ended.structuredContent.id === this.id;
		await this.client.close();
	}
}

async function rounds() {
	const all = [];
	for (const way of ways) all.push(new Round(way, await connect(way, process.env.MCP_TOKEN)));
	await Promise.all(all.map((r) => r.look()));
	for (const r of all) await r.cancel();
	return all.map((r) => r.out);
}

// refused says how each way answers who has no token, or a wrong one; nothing may be asked for first.
async function refused() {
	const out = {};
	for (const way of ways) {
		for (const [name, token] of [['none', ''], ['wrong', process.env.MCP_TOKEN.slice(0, -4) + 'aaaa']]) {
			out[`${way} ${name}`] = await connect(way, token).then(
				() => 'connected',
				(e) => e.message
			);
		}
	}
	return out;
}

console.log(JSON.stringify(await (process.argv[2] === 'refused' ? refused() : rounds()), null, '\t'));
process.exit(0);
