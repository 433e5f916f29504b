import { OrbError } from '../../errors.ts'
import type { Store } from '../../store/store.ts'
import type { ComputerRow } from '../../store/types.ts'
import { Life, type LifeDeps } from './life.ts'

/** The agents of all computers, one Life each, by id and by slot. */
export class Registry {
  private readonly lives = new Map<string, Life>()
  private readonly slots = new Map<number, Life>()

  constructor(private readonly deps: LifeDeps) {
    for (const computer of deps.store.computers.all()) this.of(computer)
  }

  of(computer: ComputerRow): Life {
    const known = this.lives.get(computer.id)
    if (known) return known
    const life = new Life(this.deps, computer)
    this.lives.set(computer.id, life)
    this.slots.set(computer.slot, life)
    return life
  }

  /** What a computer will stand on that has not been brought up yet. */
  setBase(computer: ComputerRow, base: string): void {
    for (const row of [computer, this.of(computer).computer]) row.base = base
  }

  /** @throws OrbError not_found */
  byId(computerId: string): Life {
    const life = this.lives.get(computerId)
    if (!life) throw new OrbError('not_found', 'no such computer')
    return life
  }

  atSlot(slot: number): Life | null {
    return this.slots.get(slot) ?? null
  }

  /** Waits for what is under way, then forgets it. */
  async remove(computer: ComputerRow): Promise<void> {
    const life = this.lives.get(computer.id)
    if (!life) return
    await life.close()
    this.lives.delete(computer.id)
    this.slots.delete(computer.slot)
  }

  all(): Life[] {
    return [...this.lives.values()]
  }
}

/** Agents that are on disk, or half way: what the runtime must keep closed from the first moment after a start. */
export function asleep(store: Store): { spec: ComputerRow; image: string }[] {
  const computers = new Map(store.computers.all().map((computer) => [computer.id, computer]))
  return store.agents.all().flatMap(({ computerId, image }) => {
    const spec = computers.get(computerId)
    return spec && image ? [{ spec, image }] : []
  })
}
