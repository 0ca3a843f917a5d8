// A web server to start from: replace it with your own.
'use strict'

const http = require('node:http')

const pages = { '/': 'Hello from Node.js.\n', '/health': 'ok\n' }

const server = http.createServer((request, response) => {
  const body = pages[request.url]
  response.writeHead(body ? 200 : 404, { 'Content-Type': 'text/plain; charset=utf-8' })
  response.end(body || 'Not found.\n')
  // A health check is no use of the application; its log lines would keep an environment from falling asleep.
  if (request.url !== '/health') console.log(`${request.method} ${request.url} ${response.statusCode}`)
})

const port = Number(process.env.PORT)
server.listen(port, '127.0.0.1', () => console.log(`listening on http://127.0.0.1:${port}/`))

process.on('SIGTERM', () => {
  server.close(() => process.exit(0))
  server.closeAllConnections()
})
