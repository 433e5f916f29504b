/**
 * Loaded into an orb under test ahead of its own code (`bun --preload`): name servers of the host are those of the file
 * that TEST_RESOLV_CONF names. The host's own file is shared with all that runs there.
 */
import { readFileSync } from 'node:fs'
import { plugin } from 'bun'

const HOST_FILE = "'/etc/resolv.conf'"

plugin({
  name: 'name servers',
  setup(build) {
    build.onLoad({ filter: /\/src\/runtime\/network\.ts$/ }, ({ path }) => {
      const source = readFileSync(path, 'utf8')
      if (!source.includes(HOST_FILE)) throw new Error(`${path} does not name ${HOST_FILE}`)
      return { loader: 'ts', contents: source.replace(HOST_FILE, JSON.stringify(process.env['TEST_RESOLV_CONF'])) }
    })
  },
})
