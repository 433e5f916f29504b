import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { lstatSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

let orb: Orb
beforeAll(async () => {
  orb = await startOrb()
})
afterAll(() => orb?.stop())

/** Tried as root from within the agent's own tree; each line says what came of it. */
const PROBE = `
LC_ALL=C
try() { what=$1; shift; if out=$("$@" 2>&1); then echo "$what: done"; else echo "$what: \${out##*: }"; fi; }
for mask in $(awk '$5 ~ /^\\/proc\\/./ { print $5 }' /proc/self/mountinfo | sort); do
  echo "mask $mask: $(wc -c < "$mask") bytes, $(stat -c '%F %a %u' "$mask")"
  try "chmod $mask" chmod 666 "$mask"
  try "chown $mask" chown 1:1 "$mask"
  try "touch $mask" touch -d 2001-01-01 "$mask"
done
for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/default_smp_affinity; do
  try "write $file" sh -c "echo x > $file"
done
try 'make in /proc' mkdir /proc/mine
try 'make in /dev' touch /dev/mine
try 'remove /dev/null' rm -f /dev/null
for device in null zero full random urandom tty; do
  try "chmod $device" chmod 600 /dev/$device
  try "chown $device" chown 1:1 /dev/$device
done
ls -ln /dev | awk '{ print $1, $3, $4, $5, $6, $NF }'
try 'write null' sh -c 'echo x > /dev/null'
echo "zero: $(head -c 3 /dev/zero | od -An -tx1)"
try 'make in shm' sh -c 'echo x > /dev/shm/mine && rm /dev/shm/mine'
try 'run in shm' sh -c 'cp /usr/bin/true /dev/shm/run && /dev/shm/run'
rm -f /dev/shm/run
echo "shm: $(stat -c '%a %u' /dev/shm) $(df -k --output=size,target /dev/shm | tail -1) $(ls /dev/shm | tr '\\n' ' ')"
try 'open a terminal' python3 -c 'import pty; pty.openpty()'
awk '{ print $5, $6, $9 == "-" ? $10 : $9 }' /proc/self/mountinfo | sort
`

async function probe(computer: Computer, name: string): Promise<string> {
  await computer.put('agent/data/probe.sh', PROBE)
  await computer.spawnInAgent(
    `bash /agent/data/probe.sh > /agent/data/${name}.part 2>&1; mv /agent/data/${name}.part /agent/data/${name}`,
  )
  await computer.sh(`for i in $(seq 400); do [ -e /agent/data/${name} ] && exit 0; sleep 0.05; done; exit 1`)
  return computer.get(`agent/data/${name}`)
}

async function sleepAndWake(computer: Computer): Promise<void> {
  expect((await computer.call('POST', '/agents/demote')).status).toBe(200)
  expect((await computer.call('POST', '/agents/promote')).status).toBe(200)
}

/** The devices that all computers share, as the host has them. */
const sharedDevices = (): unknown[] => {
  const dir = join(orb.dataDir, 'images', 'dev')
  return readdirSync(dir).map((name) => {
    const { mode, uid, gid, rdev } = lstatSync(join(dir, name))
    return [name, mode, uid, gid, rdev]
  })
}

test.each([
  ['empty', ''],
  ['with a file in it', 'kept'],
])(
  'what an agent shares with the server and with others is as closed after a wake as before, its /dev/shm %s',
  async (_, content) => {
    const computer = await orb.computer()
    await computer.deployAgent()
    const devices = sharedDevices()
    if (content) await computer.spawnInAgent(`echo ${content} > /dev/shm/kept`)
    const before = await probe(computer, 'before')
    const lines = before.split('\n')
    // Which files of /proc there are to hide is the kernel's affair.
    const masks = lines.flatMap((line) => /^mask (\S+):/.exec(line)?.slice(1) ?? [])
    expect(masks).not.toEqual([])
    for (const expected of [
      ...masks.flatMap((mask) => [
        `mask ${mask}: 0 bytes, character special file 666 0`,
        ...['chmod', 'chown', 'touch'].map((verb) => `${verb} ${mask}: Read-only file system`),
      ]),
      'write /proc/sys/kernel/core_pattern: Read-only file system',
      'make in /dev: Read-only file system',
      'remove /dev/null: Read-only file system',
      'chmod null: Read-only file system',
      'chown null: Read-only file system',
      'write null: done',
      'zero:  00 00 00',
      'make in shm: done',
      'run in shm: Permission denied',
      'open a terminal: done',
    ]) {
      expect(lines).toContain(expected)
    }
    for (const round of ['first', 'second']) {
      await sleepAndWake(computer)
      expect(await probe(computer, round)).toBe(before)
    }
    if (content) {
      await computer.spawnInAgent(
        'cat /dev/shm/kept > /agent/data/kept.part; mv /agent/data/kept.part /agent/data/kept',
      )
      await computer.sh('for i in $(seq 200); do [ -e /agent/data/kept ] && exit 0; sleep 0.05; done; exit 1')
      expect(await computer.get('agent/data/kept')).toBe(`${content}\n`)
    }
    expect(sharedDevices()).toEqual(devices)
    expect(sharedDevices()).not.toEqual([])
  },
)
