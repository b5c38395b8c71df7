// A certified OpenID provider on loopback, for tests: `node server.mjs CERTIFICATE KEY`.
//
// Anyone is whoever they say in its form, and in the group `people`. Clients whose names begin with `brief-` get ID tokens that
// live for 15 s; `shared` stands for a provider that gives relay and cluster one audience. It prints `ready URL`, reads `rotate`
// (sign with a new key from now on, the old one stays published), and ends with its standard input.
import { generateKeyPairSync } from 'node:crypto';
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

const start = (issuer) => {
  const provider = new Provider(issuer, {
    adapter: Kept,
    clients: [
      person('towline-relay'),
      person('towline-cluster'),
      person('brief-relay'),
      person('brief-cluster'),
      person('shared'),
      {
        client_id: 'robot',
        client_secret: 'canary-secret-of-the-robot',
        token_endpoint_auth_method: 'client_secret_basic',
        id_token_signed_response_alg: 'ES256',
        grant_types: ['client_credentials'],
        response_types: [],
        redirect_uris: [],
      },
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
    ttl: { IdToken: (_ctx, _token, client) => client.clientId.startsWith('brief-') ? 15 : 3600, AccessToken: 3600, ClientCredentials: 3600, DeviceCode: 600, Grant: 86400, Interaction: 600, Session: 86400, RefreshToken: 86400 },
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
          accessTokenTTL: 3600,
          jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
  });
  handler = provider.callback();
};

server.listen(0, '127.0.0.1', () => {
  const issuer = `https://127.0.0.1:${server.address().port}`;
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
