/**
 * An orb that is about to be killed: takes over a data directory, freezes an agent and checkpoints it.
 *
 *   bun checkpoint-child.ts '{"options":…,"spec":…,"image":…}'      prints `done` once the image is whole
 */
import { Runtime } from '../../src/runtime/runtime.ts'

const { options, spec, image } = JSON.parse(process.argv[2] ?? '')
const runtime = await Runtime.start(options, [])
await runtime.freezeAgent(spec)
await runtime.checkpoints.dump(spec, image)
console.log('done')
