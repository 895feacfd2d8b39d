// An OpenID Connect issuer on loopback, for the tests of logins: `node provider.mjs`, prints its address.
import http from 'node:http'
import { Provider } from 'oidc-provider'

const server = http.createServer()
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`
  const device = {
    application_type: 'native',
    grant_types: ['urn:ietf:params:oauth:grant-type:device_code'],
    redirect_uris: [],
    response_types: [],
  }
  const provider = new Provider(issuer, {
    clients: [
      { ...device, client_id: 'atoll', token_endpoint_auth_method: 'none' },
      { ...device, client_id: 'secretive', client_secret: 'a+b/c%=d' },
    ],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['preferred_username', 'groups'] },
    conformIdTokenClaims: false,
    cookies: { keys: ['test'] },
    features: { deviceFlow: { enabled: true }, devInteractions: { enabled: true } },
    findAccount: (_context, id) => ({
      accountId: id,
      claims: () => ({
        sub: id,
        email: `${id}@lab.example`,
        email_verified: true,
        groups: ['gpu-users'],
        preferred_username: id,
      }),
    }),
    pkce: { required: () => false },
  })
  server.on('request', provider.callback())
  console.log(issuer)
})
process.stdin.on('end', () => process.exit(0)).resume() // its parent has ended
