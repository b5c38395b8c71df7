// A certified OpenID provider on loopback, for tests: `node server.mjs CERTIFICATE KEY`.
//
// Anyone is whoever they say in its form, and in the group `people`. Clients whose names begin with `brief-` get ID tokens that
// live for 15 s; `shared` stands for a provider that gives relay and cluster one audience. It prints `ready URL`, reads `rotate`
// (sign with a new key from now on, the old one stays published), and ends with its standard input.
//
// Machines: `robot` has a secret, `robot-certificate` the key of the certificate in the file IDP_CLIENT_CERTIFICATE, and `robot-federated` a
// token of the issuer IDP_FEDERATED_ISSUER, for IDP_FEDERATED_SUBJECT and no other; it prints `federated JTI` of each that it takes. Access
// tokens for a resource whose name begins with `brief` live for 15 s. At /actions/token it is what GitHub's runners ask, for whoever brings
// IDP_RUNNER_TOKEN.
import { createPublicKey, generateKeyPairSync, sign, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

// The library is installed elsewhere, into the tests' cache.
const library = pathToFileURL(process.env.IDP_LIBRARY);
const { Provider } = await import(library);
const { default: MemoryAdapter } = await import(new URL('adapters/memory_adapter.js', library));

/** What sessions and grants are kept in: a provider with new keys goes on with those of the one before. */
class Kept extends MemoryAdapter {}

const [certificate, key] = process.argv.slice(2);
let handler = (_request, response) => response.writeHead(503).end();
const server = createServer(
  { cert: readFileSync(certificate), key: readFileSync(key) },
  (request, response) => handler(request, response),
);

const keys = [];
const newKey = () => {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  keys.unshift({ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256', kid: `key-${keys.length + 1}` });
};

const person = (client_id) => ({
  client_id,
  application_type: 'native',
  token_endpoint_auth_method: 'none',
  id_token_signed_response_alg: 'ES256',
  grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
  response_types: ['code'],
  redirect_uris: ['http://127.0.0.1/callback'],
});

const robot = (client_id, proof) => ({
  client_id,
  ...proof,
  id_token_signed_response_alg: 'ES256',
  grant_types: ['client_credentials'],
  response_types: [],
  redirect_uris: [],
});

const { IDP_CLIENT_CERTIFICATE, IDP_FEDERATED_ISSUER, IDP_FEDERATED_SUBJECT, IDP_RUNNER_TOKEN } = process.env;
/** Of `robot-federated`, and known to nobody else: who is let in by a token gets in by it. */
const federatedSecret = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' }).d;
const robots = [robot('robot', { client_secret: 'canary-secret-of-the-robot', token_endpoint_auth_method: 'client_secret_basic' })];
if (IDP_CLIENT_CERTIFICATE) {
  const jwk = createPublicKey(readFileSync(IDP_CLIENT_CERTIFICATE)).export({ format: 'jwk' });
  robots.push(robot('robot-certificate', { token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [{ ...jwk, use: 'sig' }] } }));
}
if (IDP_FEDERATED_ISSUER) {
  robots.push(robot('robot-federated', { client_secret: federatedSecret, token_endpoint_auth_method: 'client_secret_post' }));
}

const json = async (url) => (await fetch(url, { redirect: 'error' })).json();

/** The claims of a token of the federated issuer's that is meant for us; throws what is wrong with any other. */
const federatedClaims = async (token) => {
  const [header, claims] = token.split('.').slice(0, 2).map((part) => JSON.parse(Buffer.from(part, 'base64url')));
  const { issuer, jwks_uri } = await json(`${IDP_FEDERATED_ISSUER}/.well-known/openid-configuration`);
  const key = (await json(jwks_uri)).keys.find(({ kid }) => kid === header.kid);
  const [signed, signature] = [token.slice(0, token.lastIndexOf('.')), token.slice(token.lastIndexOf('.') + 1)];
  const signing = { key: createPublicKey({ key, format: 'jwk' }), dsaEncoding: 'ieee-p1363' };
  const wrong = {
    signature: header.alg !== 'ES256' || !verify('sha256', signed, signing, Buffer.from(signature, 'base64url')),
    issuer: issuer !== IDP_FEDERATED_ISSUER || claims.iss !== issuer,
    subject: claims.sub !== IDP_FEDERATED_SUBJECT,
    audience: claims.aud !== 'api://AzureADTokenExchange',
    time: !(claims.exp > Date.now() / 1000),
  };
  const found = Object.keys(wrong).filter((rule) => wrong[rule]);
  if (found.length) throw new Error(`the federated token's ${found.join(', ')}`);
  return claims;
};

/**
 * Workload identity federation, as Entra and others have it: a client's assertion is another issuer's token. The library takes only what a
 * client signed itself, so such a request goes on to it with the client's own secret.
 */
const federated = async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const form = new URLSearchParams(Buffer.concat(chunks).toString());
  request.body = Buffer.concat(chunks);
  if (form.get('client_id') !== 'robot-federated') return true;
  try {
    const type = form.get('client_assertion_type');
    if (type !== 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer') throw new Error('no assertion came');
    const { jti } = await federatedClaims(form.get('client_assertion'));
    form.delete('client_assertion');
    form.delete('client_assertion_type');
    form.set('client_secret', federatedSecret);
    request.body = form.toString();
    console.log(`federated ${jti}`);
    return true;
  } catch (error) {
    response.writeHead(401, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ error: 'invalid_client', error_description: error.message }));
    return false;
  }
};

/** What a job of GitHub's asks for an ID token: one GET for each audience. */
const actions = (request, response, url) => {
  if (request.headers.authorization !== `Bearer ${IDP_RUNNER_TOKEN}`) return response.writeHead(401).end();
  const now = Math.floor(Date.now() / 1000);
  const { kid, alg } = keys[0];
  const sub = 'repo:acme/app:ref:refs/heads/main';
  const claims = { iss: origin(), sub, aud: url.searchParams.get('audience'), repository_owner_id: '4711', iat: now, nbf: now, exp: now + 300 };
  const signed = [{ typ: 'JWT', alg, kid }, claims].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.');
  const key = { key: keys[0], format: 'jwk', dsaEncoding: 'ieee-p1363' };
  const value = `${signed}.${sign('sha256', Buffer.from(signed), key).toString('base64url')}`;
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ value, count: value.length }));
};

const origin = () => `https://127.0.0.1:${server.address().port}`;

const start = (issuer) => {
  const provider = new Provider(issuer, {
    adapter: Kept,
    clients: [
      person('towline-relay'),
      person('towline-cluster'),
      person('brief-relay'),
      person('brief-cluster'),
      person('shared'),
      ...robots,
    ],
    jwks: { keys },
    cookies: { keys: ['not a secret: nobody else reaches this'] },
    enabledJWA: { idTokenSigningAlgValues: ['ES256'] },
    scopes: ['openid', 'offline_access', 'api'],
    pkce: { required: () => true },
    issueRefreshToken: async (_ctx, client) => client.grantTypeAllowed('refresh_token'),
    findAccount: async (_ctx, id) => ({ accountId: id, claims: async () => ({ sub: id, groups: ['people'] }) }),
    claims: { openid: ['sub', 'groups'] },
    // Groups stand in the ID token, and not only at the userinfo endpoint.
    conformIdTokenClaims: false,
    ttl: { IdToken: (_ctx, _token, client) => client.clientId.startsWith('brief-') ? 15 : 3600, AccessToken: 3600, ClientCredentials: (_ctx, token) => token.resourceServer?.accessTokenTTL ?? 3600, DeviceCode: 600, Grant: 86400, Interaction: 600, Session: 86400, RefreshToken: 86400 },
    features: {
      devInteractions: { enabled: true },
      deviceFlow: { enabled: true },
      revocation: { enabled: true },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: async () => true,
        getResourceServerInfo: async (_ctx, resource) => ({
          scope: 'api',
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: new URL(resource).hostname.startsWith('brief') ? 15 : 3600,
          jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
  });
  const callback = provider.callback();
  handler = async (request, response) => {
    const url = new URL(request.url, issuer);
    if (IDP_RUNNER_TOKEN && url.pathname === '/actions/token') return actions(request, response, url);
    const asks = IDP_FEDERATED_ISSUER && request.method === 'POST' && url.pathname === '/token';
    if (!asks || await federated(request, response)) callback(request, response);
  };
};

server.listen(0, '127.0.0.1', () => {
  const issuer = origin();
  newKey();
  start(issuer);
  console.log(`ready ${issuer}`);
  const lines = createInterface({ input: process.stdin });
  lines.on('line', (line) => {
    if (line === 'rotate') {
      newKey();
      start(issuer);
      console.log('rotated');
    }
  });
  lines.on('close', () => process.exit(0));
});
